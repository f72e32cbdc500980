"""One run of a sweeper, from the claimed slot to the closed ledger row.

    lock held -> [begin, claim, step] -> [begin, fence, step] ... -> [begin, fence, step, finish, events]

Each pair of brackets is one transaction; a strategy that asks other servers waits for them in between. A run ends when
nothing is left, when its time budget is used up or when the process is told to stop; the last two hand over to the
next run. It fails by any error, gives its slot back, and is retried by its message. It stops without a word in the
ledger when its lock is lost: its successor closes the row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psycopg
import structlog
from psycopg.rows import dict_row

from app.core import metrics
from app.core.errors import Failure, Fenced, LeaseLost, NotDue, PartlyFailed, Reason, SweepFailed, describe
from app.sweeping import ledger
from app.sweeping.ledger import Claimed, Interrupted, Progress
from app.sweeping.lock import RunOutcome, Tick
from app.sweeping.schedule import Slot, microseconds, moment, slot_at
from app.sweeping.strategy import Run, Strategy
from app.sweeping.sweeper import Sweep, Sweeper, SweeperSettings

if TYPE_CHECKING:
    from psycopg import Connection, Cursor
    from psycopg_pool import ConnectionPool

    from app.core.events import Event
    from app.notify.outbox import Outbox

log = structlog.get_logger("scheduler")

S = TypeVar("S", bound=SweeperSettings)

#: Share of its interval that a run may take, and the most it may take, unless the operator says otherwise.
BUDGET_SHARE, BUDGET_MOST = 0.5, timedelta(seconds=30)


@dataclass(frozen=True)
class RunState:
    """A run between two transactions: all that it has done so far."""

    claimed: Claimed
    sweep: Sweep
    transactions: int = 0
    #: Whether the run is over, and whether it left work to the next one.
    over: bool = False
    handed_over: bool = False
    #: Deliveries of the events that it wrote, to be triggered when it is over.
    deliveries: tuple[int, ...] = ()

    @property
    def outcome(self) -> RunOutcome:
        """What its lock is released with, once it is over."""
        return RunOutcome(finished=self.claimed.slot, streak="succeeded")


@dataclass
class Runner:
    """Runs sweepers on connections of one pool."""

    pool: ConnectionPool[Connection[Any]]
    worker: str
    lease: timedelta
    retention: timedelta
    outbox: Outbox
    budget: timedelta | None = None
    stopping: Callable[[], bool] = lambda: False
    #: Called with the duration of each committed transaction, in seconds.
    on_batch: Callable[[float], None] = lambda _seconds: None

    def run(self, sweeper: Sweeper[S], settings: S, tick: Tick) -> RunState:
        """Do one run under a held lock and return how it ended.

        Raises NotDue when there is nothing to do for this tick, LeaseLost when the lock went away, SweepFailed
        for every other error; its text and cause chain are safe to show.
        """
        attempt = _Attempt(self, sweeper, settings, tick)
        failed: list[int] = []
        try:
            state = attempt.go()
        except NotDue:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, only its name may go on
            if tick.lease.lost or isinstance(error, LeaseLost):
                _count_loss(sweeper.name, error)
                raise LeaseLost from None
            failure = describe(error)
            where = _where(failure, error)
            log.warning("scheduler: task failed", task=sweeper.name, attempt=tick.attempt + 1, **where)
            failed = attempt.fail(failure)
            raise SweepFailed(failure) from None
        finally:
            self.outbox.trigger([*(attempt.newest.deliveries if attempt.newest else ()), *failed])
        _report_done(sweeper.name, state)
        metrics.RUN_SECONDS.labels(sweeper.name).observe(attempt.seconds)
        return state


class _Attempt(Generic[S]):
    """One attempt at a run."""

    def __init__(self, runner: Runner, sweeper: Sweeper[S], settings: S, tick: Tick) -> None:
        #: What the newest committed transaction left; None until the claim is committed.
        self.newest: RunState | None = None
        self._runner = runner
        self._sweeper = sweeper
        self._settings = settings
        self._tick = tick
        self._limits = ledger.Limits.below(runner.lease)
        self._started = time.perf_counter()
        budget = runner.budget or min(BUDGET_MOST, settings.interval * BUDGET_SHARE)
        self._ends = time.monotonic() + budget.total_seconds()

    @property
    def seconds(self) -> float:
        """How long the attempt has taken."""
        return time.perf_counter() - self._started

    def go(self) -> RunState:
        """Do the run, transaction by transaction, and return how it ended."""
        with (
            closing(self._sweeper.strategy(self._settings)) as strategy,
            self._runner.pool.connection() as connection,
            self._tick.lease.guarding(connection),
        ):
            cursor = connection.cursor(row_factory=dict_row)
            state = self._transaction(cursor, strategy, None)
            while not state.over:
                strategy.wait(self._stopping)
                state = self._transaction(cursor, strategy, state)
        if self._has_failed(state.sweep):
            raise PartlyFailed
        return state

    def fail(self, failure: Failure) -> list[int]:
        """Write the failure down where that is possible, with an event once a streak; return its deliveries."""
        events = self._failed_events(failure, self.newest.sweep if self.newest else Sweep())
        try:
            with self._runner.pool.connection() as connection, connection.transaction():
                cursor = connection.cursor(row_factory=dict_row)
                if self._write_failure(cursor, failure):
                    return self._runner.outbox.write(cursor, events)
        except psycopg.Error:
            # PostgreSQL is what failed, and the outbox is in it: the log is the one sink that is left.
            for event in events:
                log.error("event not stored", component=event.component, title=event.title, detail=event.detail)
        return []

    def _stopping(self) -> bool:
        """Return whether the process is to end; raises LeaseLost."""
        self._tick.lease.check()
        return self._runner.stopping()

    def _time_is_up(self) -> bool:
        return self._runner.stopping() or time.monotonic() >= self._ends

    def _has_failed(self, sweep: Sweep) -> bool:
        return bool(sweep.counts.get(self._sweeper.fails_by))

    def _transaction(self, cursor: Cursor[dict[str, Any]], strategy: Strategy, before: RunState | None) -> RunState:
        """Do one step, in the transaction that claims the slot if there is none `before`."""
        self._tick.lease.check()
        started = time.perf_counter()
        with cursor.connection.transaction():
            now = ledger.begin(cursor, self._sweeper.table, self._limits)
            if before is None:
                before = self._claim(cursor, now, now - strategy.older_than)
            else:
                ledger.fence(cursor, before.claimed)
            after = self._step(cursor, strategy, before)
            self._tick.lease.check()
        seconds = time.perf_counter() - started
        self._observe(before, after, seconds)
        strategy.committed(seconds)
        self._runner.on_batch(seconds)
        self.newest = after
        return after

    def _claim(self, cursor: Cursor[dict[str, Any]], now: datetime, cutoff: datetime) -> RunState:
        """Claim the newest due slot, and report what unfinished runs before this one had done."""
        runner, name, interval = self._runner, self._sweeper.name, self._settings.interval
        slot = self._due(now)
        claimed = ledger.claim(cursor, name, slot, interval, worker=runner.worker, now=now, cutoff=cutoff)
        deliveries = runner.outbox.write(cursor, self._interrupted_events(claimed.interrupted))
        return RunState(claimed, Sweep(cutoff=cutoff), deliveries=tuple(deliveries))

    def _due(self, now: datetime) -> Slot:
        """Return the newest due slot by the database's clock; a tick may be ahead of it by half an interval."""
        interval, asked = self._settings.interval, self._tick.slot
        current = slot_at(microseconds(now), interval)
        if asked is None or asked <= current:
            return current
        if moment(asked) - now > interval / 2:
            raise NotDue(Reason.FUTURE)
        return asked

    def _step(self, cursor: Cursor[dict[str, Any]], strategy: Strategy, before: RunState) -> RunState:
        claimed, outbox = before.claimed, self._runner.outbox
        run = Run(cursor, self._sweeper.table, claimed.slot, claimed.began, claimed.cutoff, claimed.position)
        step = strategy.step(run, over=self._time_is_up())
        handed_over = not step.last and step.resume_at is not None and self._time_is_up()
        sweep = before.sweep.plus(step.counts)
        after = replace(
            before,
            sweep=sweep,
            transactions=before.transactions + 1,
            over=step.last or handed_over,
            handed_over=handed_over,
        )
        progress = Progress(sweep.changed, after.transactions, sweep.counts)
        if not after.over or self._has_failed(sweep):
            ledger.count(cursor, claimed, progress)
            return after
        position = step.resume_at if handed_over else None
        ledger.finish(cursor, claimed, progress, position=position, retention=self._runner.retention)
        written = outbox.write(cursor, self._done_events(sweep))
        return replace(after, deliveries=(*after.deliveries, *written))

    def _observe(self, before: RunState, after: RunState, seconds: float) -> None:
        name, claimed = self._sweeper.name, after.claimed
        if not before.transactions:
            late = (claimed.began - moment(claimed.slot)).total_seconds()
            metrics.LATENESS.labels(name).observe(max(0.0, late))
            for run in claimed.interrupted:
                metrics.INTERRUPTED.labels(name).inc()
                log.warning("an earlier run was interrupted", task=name, changed=run.changed)
        metrics.BATCHES.labels(name).inc()
        metrics.BATCH_SECONDS.labels(name).observe(seconds)
        metrics.ROWS_CHANGED.labels(name).inc(after.sweep.changed - before.sweep.changed)

    def _write_failure(self, cursor: Cursor[dict[str, Any]], failure: Failure) -> bool:
        """Return whether the failure is news: a run whose last commit got through is closed already."""
        now = ledger.begin(cursor, self._sweeper.table, self._limits)
        if self.newest is not None:
            return ledger.fail(cursor, self.newest.claimed, failure)
        name, slot = self._sweeper.name, slot_at(microseconds(now), self._settings.interval)
        began, worker = now - timedelta(seconds=self.seconds), self._runner.worker
        ledger.record_failed(cursor, name, slot, started_at=began, worker=worker, failure=failure)
        return True

    def _failed_events(self, failure: Failure, sweep: Sweep) -> list[Event]:
        """Return the events of what was changed before the failure, and of the failure itself once a streak."""
        events = [self._sweeper.done(sweep)] if sweep.changed else []
        if self._tick.streak == 0:
            events.append(self._sweeper.failed(str(SweepFailed(failure)), sweep))
        return events

    def _done_events(self, sweep: Sweep) -> list[Event]:
        events = [self._sweeper.recovered(self._tick.streak)] if self._tick.streak else []
        if sweep.changed:
            events.append(self._sweeper.done(sweep))
        return events

    def _interrupted_events(self, runs: Iterable[Interrupted]) -> list[Event]:
        sweeps = [Sweep(run.changed, run.counts, run.cutoff) for run in runs if run.changed]
        return [self._sweeper.done(sweep, interrupted=1) for sweep in sweeps]


def _count_loss(name: str, error: BaseException) -> None:
    metrics.LEASE_LOST.labels(name).inc()
    metrics.FENCED.labels(name).inc(isinstance(error, Fenced))
    log.warning("scheduler: lock lease lost", task=name)


def _report_done(name: str, state: RunState) -> None:
    claimed, sweep = state.claimed, state.sweep
    metrics.LAST_SUCCESS.labels(name).set_to_current_time()
    metrics.HANDED_OVER.labels(name).inc(state.handed_over)
    level = log.info if sweep.changed or claimed.covered else log.debug
    level(
        "sweep done",
        task=name,
        slot=moment(claimed.slot),
        changed=sweep.changed,
        batches=state.transactions,
        covered=claimed.covered,
        handed_over=state.handed_over,
        **sweep.counts,
    )


def _where(failure: Failure, error: BaseException) -> dict[str, object]:
    """Name the error and the line it came from; texts of foreign errors are never shown."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    at = f"{frame.tb_frame.f_code.co_name}:{frame.tb_lineno}" if frame is not None else ""
    return {**failure._asdict(), "at": at}
