"""Each slot is run once: it is one committed success's own, or one of those that exactly one run covers.

Slots are counted one by one over the grid of the cadence, in whole microseconds, and believe no sum of the ledger. What
counts is what was committed at the time, not what the ledger says in the end. As documented:

- The slot of a run that its successor has closed as interrupted counts as run, and what it covered as covered, unless
  the same slot was claimed once more. The slot of one that failed was given back.
- A run by hand has a moment of its own; it serves the slot that this lies in, and so may a tick.
- When the database's clock was ahead and is no more, the fence is set back: slots ahead that were run are forgotten, to
  be run when their time has come, and what lies behind the new place stays as it was.
- Where cadences roll, a run claims slots of its own process's, and counts by that, whatever tick it was sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tests.chaos.checks.transactions import Claim, claim_of, micros, when
from tests.chaos.history import Change, History

_MOST_NAMED = 3


def slots_once(history: History) -> Iterator[str]:
    """Yield slots that were run twice, were run by nobody, or covered although they were run."""
    changes: dict[str, list[Change]] = {}
    for change in history.changes:
        if change.relation in {"sweep_state", "sweep_run"} and change.op != "delete":
            changes.setdefault(change.after["name"], []).append(change)
    for name, own in changes.items():
        sweeper = _Sweeper(name, [micros(cadence) for cadence in history.cadences[name]])
        yield from sweeper.walk(own)
        yield from sweeper.count()


@dataclass
class _Run:
    claim: Claim
    fate: str = "running"
    #: Its slot was claimed once more.
    again: bool = False
    #: Slots after this one are its own no more: the fence was set back to there.
    until: int | None = None
    #: Where the fence was set back to last before its claim, if ever.
    back: int | None = None

    @property
    def own(self) -> bool:
        """Whether its slot is still its own."""
        return self.until is None or self.claim.slot <= self.until

    @property
    def stands(self) -> bool:
        """Whether it has taken slots from others."""
        return self.fate != "failure" and not self.again


class _Sweeper:
    """The runs of one sweeper, by its changes in the order of their commits."""

    def __init__(self, name: str, cadences: Sequence[int]) -> None:
        self._name = name
        self._cadences = cadences
        self._runs: dict[int, _Run] = {}
        #: The newest setting back: its transaction and its slot.
        self._back: tuple[int, int] = (0, 0)

    def walk(self, changes: Sequence[Change]) -> Iterator[str]:
        """Follow what was committed; yield what may not happen to a run."""
        for change in changes:
            if change.relation == "sweep_state":
                yield from self._fence(change)
            elif change.op == "insert" and change.after["outcome"] == "running":
                yield from self._claim(claim_of(change))
            elif change.op == "update":
                yield from self._end(change)

    def _fence(self, change: Change) -> Iterator[str]:
        before, after = change.before, change.after
        if not before or before["token"] == after["token"]:
            return
        last, slot = when(before["last_slot"]), when(after["last_slot"])
        if slot >= last:
            return
        if last <= change.began + timedelta(microseconds=min(self._of_cadence(change)) * 0.75):
            yield f"{self._name}: the fence went back from {last} to {slot}, although nothing was ahead"
        self._back = change.xid, micros(slot)
        for run in self._runs.values():
            run.until = micros(slot) if run.until is None else min(run.until, micros(slot))

    def _claim(self, claim: Claim) -> Iterator[str]:
        if self._back == (claim.change.xid, claim.slot):
            for run in self._runs.values():  # it is run once more: by nobody else, unless that one had succeeded
                if run.claim.slot != claim.slot or run.fate != "success":
                    run.until = min(claim.slot - 1, claim.slot if run.until is None else run.until)
        cadences = self._of_cadence(claim.change)
        if not claim.by_hand and all(claim.slot % cadence for cadence in cadences):
            yield f"{self._of(claim)} is no slot of its cadence"
        ahead = claim.slot - micros(claim.change.began)
        if ahead > max(cadences) * (1 if claim.by_hand else 0.5):
            yield f"{self._of(claim)} was claimed {ahead / 1e6:.3f} s before its time"
        for run in self._runs.values():
            if not run.stands or not run.own or run.claim.slot < claim.slot:
                continue
            if run.claim.slot > claim.slot:
                yield f"{self._of(claim)} was claimed after {self._of(run.claim)}"
            elif run.fate == "success":
                yield f"{self._of(claim)} was claimed after run {run.claim.run} had done it"
            else:
                run.again = True
        self._runs[claim.run] = _Run(claim, back=self._back[1] if self._back[0] else None)

    def _end(self, change: Change) -> Iterator[str]:
        run = self._runs.get(change.after["id"])
        was, now = change.before["outcome"], change.after["outcome"]
        if run is None or was == now:
            return
        run.fate = "interrupted" if run.fate == "success" else now
        if was == "success":
            xid, back = self._back
            if now != "interrupted" or xid != change.xid or run.claim.slot <= back:
                yield f"{self._of(run.claim)} had succeeded, and was made {now}"
        elif was != "running":
            yield f"{self._of(run.claim)} was {was}, and was made {now}"
        elif now == "success":
            yield from self._twice(run)

    def _twice(self, run: _Run) -> Iterator[str]:
        for other in self._runs.values():
            same = other is not run and other.claim.slot == run.claim.slot and other.own
            if same and other.fate == "success":
                yield f"{self._of(run.claim)} was run twice, by run {other.claim.run} before"

    def count(self) -> Iterator[str]:
        """Yield slots of the grid that nobody has run or covered, and those that were covered all the same."""
        last: int | None = None
        for run in sorted((run for run in self._runs.values() if run.stands), key=self._reach):
            reach = self._reach(run)
            if last is None:
                if run.own:
                    yield from self._first(run)
                    last = reach
                continue
            if reach <= last:
                continue  # set back to before what others have taken
            found = [list(self._wrong(run, last, cadence)) for cadence in self._of_cadence(run.claim.change)]
            yield from min(found, key=len)
            last = reach

    def _first(self, run: _Run) -> Iterator[str]:
        """Judge the first one that stands: it covers nothing, or all from where the fence was set back to."""
        if run.back is not None:
            found = [
                list(self._wrong(run, run.back - cadence, cadence)) for cadence in self._of_cadence(run.claim.change)
            ]
            yield from min(found, key=len)
        elif run.claim.covered:
            yield f"{self._of(run.claim)} covers {run.claim.covered}, and is the first"

    def _reach(self, run: _Run) -> int:
        """Return the end of what it has taken: its slot, or where the fence was set back to."""
        return run.claim.slot if run.own or run.until is None else run.until

    def _of_cadence(self, change: Change) -> Sequence[int]:
        """Return the cadences that it may be of: that of its process, where this is known."""
        return self._cadences if change.cadence is None else [micros(change.cadence)]

    def _wrong(self, run: _Run, last: int, cadence: int) -> Iterator[str]:
        own, reach = run.claim.slot - run.claim.slot % cadence, self._reach(run)
        covered = {own - cadence * number for number in range(1, run.claim.covered + 1)}
        expected = set(range(last - last % cadence + cadence, own, cadence))
        # What lies after the place that the fence was set back to is nobody's yet.
        nobody = sorted(slot for slot in expected - covered if slot <= reach)
        taken = sorted(slot for slot in covered - expected if slot <= reach)
        if nobody:
            yield f"{len(nobody)} slots without a run before {self._of(run.claim)}, {_named(nobody)}"
        if taken:
            yield f"{self._of(run.claim)} covers {len(taken)} that were run, {_named(taken)}"

    def _of(self, claim: Claim) -> str:
        return f"{self._name}: slot {_moment(claim.slot)} (run {claim.run})"


def _moment(slot: int) -> str:
    moment = datetime.fromtimestamp(slot // 1_000_000).astimezone()
    fraction = f"{slot % 1_000_000:06d}".rstrip("0")
    return f"{moment:%H:%M:%S}" + (f".{fraction}" if fraction else "")


def _named(slots: Sequence[int]) -> str:
    return ", ".join(map(_moment, slots[:_MOST_NAMED])) + (" ..." if len(slots) > _MOST_NAMED else "")
