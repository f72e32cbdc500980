"""A lock is released by who holds it, serves one run, and is not kept by a run that goes on no more.

The fence hides all three from the data: a lock that is released by another one, or kept for a retry, costs a claim that
fails or a wait, and no row. So these are judged by what Redis was told, where that was recorded, and by the claims.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tests.chaos.history import History
from tests.chaos.surroundings.lock_record import LockStep

#: A run gets half its interval, then ends with one transaction, which has less than a lease; and whoever is stuck is
#: found out one lease later. As much again is for processes that are stopped for a while, shorter than the lease.
_LEASES = 4
_SHARE, _MOST = 0.5, timedelta(seconds=30)


@dataclass
class _Holding:
    """A lock from the moment in which it is taken."""

    token: str
    since: datetime
    lease: timedelta
    #: Whether nobody can still run under an earlier one, who does not know yet that it is gone.
    alone: bool


@dataclass
class _Lock:
    """One sweeper's lock, step by step."""

    name: str
    #: When and by which process runs of it were claimed.
    claims: list[tuple[datetime, str]]
    longest: timedelta
    holding: _Holding | None = None
    released: bool = True
    segment: int = -1
    #: When a holder may have been robbed of it, at the latest.
    unknown: datetime | None = None
    told: set[str] = field(default_factory=set)

    def step(self, step: LockStep) -> Iterator[str]:
        """Yield what is wrong with the next step."""
        if step.segment != self.segment or step.what == "by hand":
            self.segment, self.holding, self.unknown = step.segment, None, step.at
        if step.what == "taken":
            self._taken(step)
        elif self.holding is None:
            return
        elif step.what == "released":
            yield from self._released(step, self.holding)
        elif step.what == "renewed" and step.token == self.holding.token:
            yield from self._renewed(step, self.holding)

    def _taken(self, step: LockStep) -> None:
        holding = self.holding
        if holding is not None and holding.token == step.token:
            return  # the reply was lost, and it has asked again
        if holding is not None and not self.released:
            self.unknown = step.at
        # Who was robbed of it commits no claim later than one lease after its last renewal.
        alone = self.unknown is None or step.at > self.unknown + step.lease
        self.holding, self.released = _Holding(step.token, step.at, step.lease, alone), False

    def _released(self, step: LockStep, holding: _Holding) -> Iterator[str]:
        if step.token != holding.token:
            yield f"{self.name}: at {step.at} the lock of {holding.token} was released by {step.token}, which lacks it"
            return
        self.released = True
        if not holding.alone:
            return
        workers = [worker for at, worker in self.claims if holding.since <= at <= step.at]
        for worker in sorted(set(workers)):
            if workers.count(worker) > 1:
                text = f"{workers.count(worker)} runs under one lock, taken at {holding.since}"
                yield f"{self.name}: {worker} claimed {text}"

    def _renewed(self, step: LockStep, holding: _Holding) -> Iterator[str]:
        longest = self.longest + holding.lease * _LEASES
        if step.at > holding.since + longest and holding.token not in self.told:
            self.told.add(holding.token)
            seconds = longest.total_seconds()
            yield f"{self.name}: the lock taken at {holding.since} is still renewed after {seconds:g} s"


def locks_are_kept(history: History) -> Iterator[str]:
    """Yield each release by who does not hold the lock, each second run under one, each that is kept for too long."""
    locks: dict[str, _Lock] = {}
    for step in history.locks:
        if step.name not in history.cadences:
            continue  # a lock of no sweeper's
        if step.name not in locks:
            longest = min(max(history.cadences[step.name]) * _SHARE, _MOST)
            locks[step.name] = _Lock(step.name, list(_claims(history, step.name)), longest)
        yield from locks[step.name].step(step)


def _claims(history: History, name: str) -> Iterable[tuple[datetime, str]]:
    for change in history.changes:
        row = change.after
        opened = change.relation == "sweep_run" and change.op == "insert" and row["outcome"] == "running"
        if opened and row["name"] == name:
            yield change.at, row["worker"]
