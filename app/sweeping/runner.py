"""One run of a sweeper, from the claimed slot to the closed ledger row.

    lease held -> [begin, claim, batch] -> [begin, fence, batch] ... -> [begin, fence, batch, finish, events]

Each pair of brackets is one transaction; what a sweeper does outside, such as asking a server, lies between them. A
run ends when nothing is left, when its time budget is used up or when the process is told to stop; the last two hand
over to the next run. It fails by any error, gives its slot back, and
is retried by its message. It stops without a word in the ledger when its lock is lost: its successor closes the row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psycopg
import structlog
from psycopg.rows import dict_row

from app.core import metrics
from app.core.errors import Failure, Fenced, LeaseLost, NotDue, PartlyFailed, Reason, SweepFailed, describe
from app.sweeping import ledger
from app.sweeping.batch import Batch
from app.sweeping.schedule import Slot, microseconds, moment, slot_at
from app.sweeping.sweeper import Outside, Sweep, Sweeper, SweeperSettings

if TYPE_CHECKING:
    from psycopg import Connection, Cursor
    from psycopg_pool import ConnectionPool

    from app.core.events import Event
    from app.notify.outbox import Outbox
    from app.sweeping.lock import Lease

log = structlog.get_logger("scheduler")

S = TypeVar("S", bound=SweeperSettings)

#: Share of its interval that a run may take, and the most it may take, unless the operator says otherwise.
BUDGET_SHARE, BUDGET_MOST = 0.5, timedelta(seconds=30)


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
    #: Told the duration of each transaction, in seconds.
    on_batch: Callable[[float], None] = lambda _seconds: None

    def run(self, sweeper: Sweeper[S], settings: S, lease: Lease) -> Sweep:
        """Do one run under a held lease.

        Raises NotDue when there is nothing to do for this tick, LeaseLost when the lock went away, SweepFailed
        for every other error; its text and cause chain are safe to show.
        """
        one = _Run(self, sweeper, settings, lease)
        started = time.perf_counter()
        try:
            sweep = one.go()
        except NotDue:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, only its name may go on
            if lease.lost or isinstance(error, LeaseLost):
                _count_loss(sweeper.name, error)
                raise LeaseLost from None
            failure = describe(error)
            one.fail(failure, error)
            self.outbox.trigger(one.written)
            raise SweepFailed(failure) from None
        self.outbox.trigger(one.written)
        metrics.RUN_SECONDS.labels(sweeper.name).observe(time.perf_counter() - started)
        return sweep


def _count_loss(name: str, error: BaseException) -> None:
    metrics.LEASE_LOST.labels(name).inc()
    metrics.FENCED.labels(name).inc(isinstance(error, Fenced))
    log.warning("scheduler: lock lease lost", task=name)


class _Run(Generic[S]):
    """The state of one run."""

    def __init__(self, runner: Runner, sweeper: Sweeper[S], settings: S, lease: Lease) -> None:
        self.runner = runner
        self.sweeper = sweeper
        self.settings = settings
        self.lease = lease
        self.limits = ledger.Limits.below(runner.lease)
        self.claim: ledger.Claim | None = None
        self.batch: Batch[S] | None = None
        self.sweep = Sweep()
        self.batches = 0
        self.handed_over = False
        self.began: datetime | None = None
        self.outside: Outside | None = None
        #: Deliveries that were committed, to be triggered when the run is over.
        self.written: list[int] = []
        budget = runner.budget or min(BUDGET_MOST, settings.interval * BUDGET_SHARE)
        self.ends = time.monotonic() + budget.total_seconds()

    def go(self) -> Sweep:
        with (
            self._outside() as self.outside,
            self.runner.pool.connection() as connection,
            self.lease.guarding(connection),
        ):
            cursor = connection.cursor(row_factory=dict_row)
            while not self._one_batch(cursor):
                if self.outside is not None:
                    self.outside.wait(self._stopping)
        claim = self._claimed
        if self._failed(self.sweep):
            raise PartlyFailed
        self.lease.succeeded(claim.slot)
        self._tell_done(claim)
        return self.sweep

    @contextmanager
    def _outside(self) -> Iterator[Outside | None]:
        """Make what the run does between transactions, and close it however the run ends."""
        if self.sweeper.outside is None:
            yield None
            return
        with closing(self.sweeper.outside(self.settings)) as outside:
            yield outside

    def _stopping(self) -> bool:
        """Say whether the process is to end; raises LeaseLost."""
        self.lease.check()
        return self.runner.stopping()

    def _failed(self, sweep: Sweep) -> bool:
        return bool(sweep.counts.get(self.sweeper.fails_by))

    def _one_batch(self, cursor: Cursor[dict[str, Any]]) -> bool:
        """Do one transaction and say whether it was the last."""
        self.lease.check()
        started = time.perf_counter()
        written: list[int] = []
        with cursor.connection.transaction():
            now = ledger.begin(cursor, self.sweeper.table, self.limits)
            claim = self._claim(cursor, now) if self.claim is None else self.claim
            if self.claim is not None:
                ledger.hold(cursor, claim)
            else:
                written += self.runner.outbox.write(cursor, self._interrupted_events(claim))
            batch = self._batch_of(cursor, claim, now)
            batch.over = self.runner.stopping() or time.monotonic() >= self.ends
            sweep = self.sweep.plus(self.sweeper.batch(batch))
            over = self.runner.stopping() or time.monotonic() >= self.ends
            self.handed_over = over and not batch.done and not batch.pending
            last = batch.done or self.handed_over
            done = ledger.Progress(sweep.changed, self.batches + 1, sweep.counts)
            if last and not self._failed(sweep):
                position = batch.resume_at if self.handed_over else None
                ledger.finish(cursor, claim, done, position=position, retention=self.runner.retention)
                written += self.runner.outbox.write(cursor, self._done_events(sweep))
            else:
                ledger.count(cursor, claim, done)
            self.lease.check()
        self._committed(claim, batch, sweep, time.perf_counter() - started)
        self.written += written
        return last

    def _claim(self, cursor: Cursor[dict[str, Any]], now: datetime) -> ledger.Claim:
        self.began = now
        slot = self._due(now)
        cutoff = now - self.settings.older_than
        self.sweep = Sweep(cutoff=cutoff)
        interval = self.settings.interval
        return ledger.claim(cursor, self.sweeper.name, slot, interval, worker=self.runner.worker, cutoff=cutoff)

    def _due(self, now: datetime) -> Slot:
        """Give the newest due slot by the database's clock; a tick may be ahead of it by half an interval."""
        current = slot_at(microseconds(now), self.settings.interval)
        asked = self.lease.slot
        if asked is None or asked <= current:
            return current
        if moment(asked) - now > self.settings.interval / 2:
            raise NotDue(Reason.FUTURE)
        return asked

    def _batch_of(self, cursor: Cursor[dict[str, Any]], claim: ledger.Claim, now: datetime) -> Batch[S]:
        if self.batch is None:
            cutoff = self.sweep.cutoff or now
            self.batch = Batch(
                cursor, self.settings, self.sweeper.table, claim.slot, now, cutoff, claim.position, outside=self.outside
            )
        return self.batch

    def _committed(self, claim: ledger.Claim, batch: Batch[S], sweep: Sweep, seconds: float) -> None:
        name = self.sweeper.name
        if self.claim is None:
            late = (batch.now - moment(claim.slot)).total_seconds()
            metrics.LATENESS.labels(name).observe(max(0.0, late))
            for left in claim.interrupted:
                self._tell_interrupted(left)
        metrics.BATCHES.labels(name).inc()
        metrics.BATCH_SECONDS.labels(name).observe(seconds)
        metrics.ROWS_CHANGED.labels(name).inc(sweep.changed - self.sweep.changed)
        batch.steering.learn(seconds, batch.found)
        self.runner.on_batch(seconds)
        self.claim, self.sweep, self.batches = claim, sweep, self.batches + 1

    @property
    def _claimed(self) -> ledger.Claim:
        if self.claim is None:
            raise RuntimeError("no claim")
        return self.claim

    def fail(self, failure: Failure, error: BaseException) -> None:
        """Write the failure down where that is possible, and tell it once a streak."""
        self.lease.failed()
        log.warning(
            "scheduler: task failed",
            task=self.sweeper.name,
            attempt=self.lease.attempt + 1,
            **_where(failure, error),
        )
        events = self._failed_events(failure)
        try:
            with self.runner.pool.connection() as connection, connection.transaction():
                cursor = connection.cursor(row_factory=dict_row)
                if not self._write_failure(cursor, failure):
                    return
                written = self.runner.outbox.write(cursor, events)
        except psycopg.Error:
            # PostgreSQL is what failed, and the outbox is in it: the log is the one sink that is left.
            for event in events:
                log.error("event not stored", component=event.component, title=event.title, detail=event.detail)
        else:
            self.written += written

    def _write_failure(self, cursor: Cursor[dict[str, Any]], failure: Failure) -> bool:
        now = ledger.begin(cursor, self.sweeper.table, self.limits)
        if self.claim is not None:
            return ledger.fail(cursor, self.claim, failure)
        name, slot = self.sweeper.name, slot_at(microseconds(now), self.settings.interval)
        began = self.began or now
        ledger.record_failed(cursor, name, slot, started_at=began, worker=self.runner.worker, failure=failure)
        return True

    def _failed_events(self, failure: Failure) -> list[Event]:
        """Word what was changed before the failure, and the failure itself once a streak."""
        events = [self.sweeper.done(self.sweep)] if self.sweep.changed else []
        if self.lease.streak == 0:
            events.append(self.sweeper.failed(str(SweepFailed(failure)), self.sweep))
        return events

    def _done_events(self, sweep: Sweep) -> list[Event]:
        events = [self.sweeper.recovered(self.lease.streak)] if self.lease.streak else []
        if sweep.changed:
            events.append(self.sweeper.done(sweep))
        return events

    def _interrupted_events(self, claim: ledger.Claim) -> list[Event]:
        return [
            self.sweeper.done(Sweep(left.changed, left.counts, left.cutoff), interrupted=1)
            for left in claim.interrupted
            if left.changed
        ]

    def _tell_done(self, claim: ledger.Claim) -> None:
        name = self.sweeper.name
        metrics.LAST_SUCCESS.labels(name).set_to_current_time()
        if self.handed_over:
            metrics.HANDED_OVER.labels(name).inc()
        level = log.info if self.sweep.changed or claim.covered else log.debug
        level(
            "sweep done",
            task=name,
            slot=moment(claim.slot),
            changed=self.sweep.changed,
            batches=self.batches,
            covered=claim.covered,
            handed_over=self.handed_over,
            **self.sweep.counts,
        )

    def _tell_interrupted(self, left: ledger.Interrupted) -> None:
        metrics.INTERRUPTED.labels(self.sweeper.name).inc()
        log.warning("an earlier run was interrupted", task=self.sweeper.name, changed=left.changed)


def _where(failure: Failure, error: BaseException) -> dict[str, object]:
    """Name the error and the line it came from; texts of foreign errors are never shown."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    at = f"{frame.tb_frame.f_code.co_name}:{frame.tb_lineno}" if frame is not None else ""
    return {**failure._asdict(), "at": at}
