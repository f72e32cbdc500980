"""Makes the view of each sweeper from what was read of it, in PostgreSQL, in Redis, and of the processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from app.overview.model import Holder, RunPoint, State, SweeperView
from app.overview.sources.locks import Locks
from app.overview.sources.obstacles import Obstacle
from app.overview.sources.standings import Standing, Watched, cadence, grace
from app.sweeping.scans.due import Backlog
from app.sweeping.schedule import microseconds, moment, slot_at
from app.sweeping.unserved import Pair

if TYPE_CHECKING:
    from app.fleet.processes import Process


@dataclass(frozen=True)
class Asked:
    """Of what an overview is to be: the sweepers with their settings as who asks has them, receivers, lock keys."""

    pairs: Sequence[Pair]
    targets: Sequence[str]
    #: Prefix of the lock keys.
    namespace: str
    #: Pages that one run reads at most.
    most_pages: int
    deployment: str = ""

    @property
    def watched(self) -> list[Watched]:
        """Each sweeper, with what it rests without and how often it would run by these settings."""
        return [Watched(sweeper.name, sweeper.rests_without(own), own.tick) for sweeper, own in self.pairs]

    @property
    def names(self) -> list[str]:
        """The sweepers' names."""
        return [sweeper.name for sweeper, _ in self.pairs]


@dataclass
class Found:
    """What was read so far."""

    locks: Locks
    now: datetime
    fleet: Sequence[Process] = ()
    standings: Mapping[str, Standing] = field(default_factory=dict)
    runs: Mapping[str, tuple[RunPoint, ...]] = field(default_factory=dict)
    obstacles: Mapping[tuple[str, str], datetime] = field(default_factory=dict)
    backlogs: Mapping[str, Backlog] = field(default_factory=dict)
    passes: Mapping[str, int] = field(default_factory=dict)


def views(asked: Asked, found: Found) -> list[SweeperView]:
    """Return the view of each sweeper, in their order."""
    return [_view(pair, watched, found) for pair, watched in zip(asked.pairs, asked.watched, strict=True)]


def _view(pair: Pair, watched: Watched, found: Found) -> SweeperView:
    sweeper, own = pair
    standing, runs = found.standings.get(sweeper.name), found.runs.get(sweeper.name, ())
    interval = cadence(sweeper.name, found.fleet, watched.interval)
    state, reason = _state(pair, watched, standing, found.fleet)
    owed = standing.owed_since(interval, _began(sweeper.name, found.fleet)) if standing and state is State.ON else None
    failed = next((run for run in reversed(runs) if run.outcome == "failure"), None)
    failures = standing.failures if standing else 0
    error = failed.error if failed and failures else ""
    return SweeperView(
        name=sweeper.name,
        interval=interval,
        state=state,
        reason=reason,
        since={State.PAUSED: standing.paused_at, State.BRAKED: standing.braked_at}.get(state) if standing else None,
        until=standing.paused_until if standing and state is State.PAUSED else None,
        next_tick=moment(slot_at(microseconds(found.now), interval)) + interval,
        runs=runs,
        last_success=standing.last_success if standing else None,
        overdue_since=owed if owed and found.now - owed > grace(interval) else None,
        holder=_holder(sweeper.name, runs, found),
        backlog=found.backlogs.get(sweeper.name),
        failures=failures,
        failing_since=((standing and standing.failing_since) or _failing_since(runs)) if failures else None,
        error=error,
        sqlstate=error.partition(" ")[2],
        runs_a_pass=found.passes.get(sweeper.name, 1),
        own_interval=own.tick if own.enabled else None,
    )


def _state(pair: Pair, watched: Watched, standing: Standing | None, fleet: Sequence[Process]) -> tuple[State, str]:
    """Return whether a sweeper is to run, and why not. What living processes are set to counts before our settings."""
    sweeper, own = pair
    living = [process for process in fleet if process.alive]
    off = [process.off[sweeper.name] for process in living if sweeper.name in process.off]
    runs = any(sweeper.name in process.cadences for process in living)
    if not runs and (off or not own.enabled):
        return State.OFF, off[0] if off else own.switch
    if standing is None:
        return State.ON, ""
    reasons = {
        State.RESTING: watched.relation,
        State.PAUSED: ": ".join(filter(None, (standing.paused_by, standing.paused_for))),
        State.BRAKED: standing.braked_for or "",
    }
    return standing.state, reasons.get(standing.state, "")


def _began(name: str, fleet: Sequence[Process]) -> datetime | None:
    """Return when the longest living process began that runs a sweeper."""
    return min((one.started_at for one in fleet if one.alive and name in one.cadences), default=None)


def _holder(name: str, runs: Sequence[RunPoint], found: Found) -> Holder | None:
    lock = found.locks.held.get(name)
    if lock is None:
        return None
    run = next((run for run in reversed(runs) if run.outcome == "running"), None)
    if run is not None:
        return Holder(run.worker, run.started_at, lock.expires_in)
    return Holder("", found.obstacles.get((name, Obstacle.FOREIGN_LOCK)), lock.expires_in)


def _failing_since(runs: Sequence[RunPoint]) -> datetime | None:
    """Return when the first of the failed attempts since the newest success began, as far as they are known."""
    since = None
    for run in reversed(runs):
        if run.outcome == "success":
            break
        since = run.started_at if run.outcome == "failure" else since
    return since
