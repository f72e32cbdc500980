"""One run of a sweeper, from the claimed slot to the closed ledger row.

    lock held -> [begin, claim, step] -> [begin, fence, step] ... -> [begin, fence, step, finish, events]

Each pair of brackets is one transaction; in between a strategy may look for what there is to do, which needs no fence,
or wait for other servers. What need not wait for an answer is sent together, so that a transaction takes two round
trips, and the first one three. A run ends when nothing is left, when its time budget is used up or when the process is
told to stop; the last two hand over to the next run. It fails by any error, gives its slot back, and is retried by its
message. It stops without a word in the ledger when its lock is lost: its successor closes the row.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, LiteralString, TypeVar

import psycopg
import structlog
from psycopg.rows import dict_row

from app.core import metrics
from app.core.errors import Failure, LeaseLost, NotDue, PartlyFailed, Reason, SweepFailed, describe
from app.storage.pipeline import PipelinedTransaction
from app.storage.postgres import only_row
from app.sweeping import clocks, reports
from app.sweeping.ledger import claims, failures, runs, transactions
from app.sweeping.ledger.claims import Claim
from app.sweeping.ledger.runs import Claimed, Progress, Rest
from app.sweeping.ledger.transactions import Answers, Begun
from app.sweeping.lock import Tick
from app.sweeping.run_state import RunState
from app.sweeping.schedule import microseconds, moment, slot_at
from app.sweeping.steering.brake import Brake, Claiming
from app.sweeping.strategy import Run, Step, Stopwatch, Strategy
from app.sweeping.streak import Counted, Streak, Telling
from app.sweeping.sweeper import Sweep, Sweeper, SweeperSettings
from app.tracing import spans

if TYPE_CHECKING:
    from psycopg import Connection, Cursor
    from psycopg_pool import ConnectionPool

    from app.notify.outbox import Outbox

log = structlog.get_logger("scheduler")

S = TypeVar("S", bound=SweeperSettings)
T = TypeVar("T")

#: Share of its interval that a run may take, and the most it may take, unless the operator says otherwise.
BUDGET_SHARE, BUDGET_MOST = 0.5, timedelta(seconds=30)
#: Rows that a run steps around before it hands over: each is a failing statement, and lines in the server's log.
MOST_ROWS_FAILED = 1_000


class RunFailed(SweepFailed):
    """A run ended by an error, and its lock is still held. `write_down` is to be called once it is free."""

    def __init__(self, failure: Failure, write_down: Callable[[], None]) -> None:
        super().__init__(failure)
        self.write_down = write_down


class _StepFailed(Exception):
    """A step failed by an error of its statement, and was rolled back."""

    def __init__(self, error: psycopg.Error) -> None:
        super().__init__()
        self.error = error


@dataclass
class Runner:
    """Runs sweepers on connections of one pool."""

    pool: ConnectionPool[Connection[Any]]
    worker: str
    lease: timedelta
    retention: timedelta
    outbox: Outbox
    #: When people are told of failures.
    telling: Telling = field(default_factory=Telling)
    budget: timedelta | None = None
    #: How many pages of a table one run goes through at most; None for all.
    most_pages: int | None = None
    stopping: Callable[[], bool] = lambda: False
    #: Called with the duration of each committed transaction, in seconds.
    on_batch: Callable[[float], None] = lambda _seconds: None
    #: Called after it with what the run has done so far.
    on_progress: Callable[[RunState], None] = lambda _state: None

    def run(self, sweeper: Sweeper[S], settings: S, tick: Tick) -> RunState:
        """Do one run under a held lock and return how it ended.

        Raises NotDue when there is nothing to do for this tick, LeaseLost when the lock went away, RunFailed
        for every other error; its text and cause chain are safe to show.
        """
        attempt = _Attempt(self, sweeper, settings, tick)
        try:
            state = attempt.go()
        except NotDue:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, only its name may go on
            attempt.trigger()
            if tick.lease.lost or isinstance(error, LeaseLost):
                reports.count_loss(sweeper.name, error)
                raise LeaseLost from None
            failure = describe(error)
            where = reports.where(failure, error)
            log.warning("scheduler: task failed", task=sweeper.name, attempt=tick.attempt + 1, **where)
            raise RunFailed(failure, partial(attempt.write_failure, failure)) from None
        attempt.trigger()
        reports.done(sweeper.name, state)
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
        self._limits = transactions.Limits.below(runner.lease)
        self._brake = Brake(settings.brake, sweeper.backlog(settings), sweeper.size)
        self._started = time.perf_counter()
        budget = runner.budget or min(BUDGET_MOST, settings.tick * BUDGET_SHARE)
        self._ends = time.monotonic() + budget.total_seconds()
        #: The shortest that a round trip took, seconds.
        self._round_trip = math.inf
        #: Failures before this run, as the transaction under way has found them.
        self._streak = Streak()

    @property
    def _requested_by(self) -> str | None:
        return self._tick.order.requested_by if self._tick.order else None

    @property
    def seconds(self) -> float:
        """How long the attempt has taken."""
        return time.perf_counter() - self._started

    def go(self) -> RunState:
        """Do the run, transaction by transaction, and return how it ended.

        A connection is borrowed for each: nobody waits for one behind a run that is long, or that waits for others.
        """
        with closing(self._sweeper.strategy(self._settings)) as strategy:
            state = self._next(strategy, None)
            while not state.over:
                self._look(strategy)
                strategy.wait(self._stopping)
                state = self._next(strategy, state)
        if self._has_failed(state.sweep):
            raise PartlyFailed
        return state

    def trigger(self) -> None:
        """Have the deliveries sent that were committed."""
        if self.newest is not None:
            self._runner.outbox.trigger(self.newest.deliveries)

    def write_failure(self, failure: Failure) -> None:
        """Write the failure down where that is possible, with an event when people are to be told of the streak."""
        try:
            with self._runner.pool.connection() as connection, connection.transaction():
                cursor = connection.cursor(row_factory=dict_row)
                counted, sweep = self._count_failure(cursor, failure)
                events = reports.failed_events(self._sweeper, failure, sweep, counted)
                written = self._runner.outbox.write(cursor, events)
                runs.prune(cursor, self._sweeper.name, self._runner.retention)
        except NotDue:
            return  # the api's table has gone meanwhile: then the sweep rests
        except psycopg.Error:
            # PostgreSQL is what failed, and the outbox is in it: the log is the one sink that is left.
            sweep = self.newest.sweep if self.newest else Sweep()
            for event in reports.failed_events(self._sweeper, failure, sweep, Counted(Streak(1), tell=True)):
                log.error("event not stored", component=event.component, title=event.title, detail=event.detail)
        else:
            self._runner.outbox.trigger(written)

    def _next(self, strategy: Strategy, before: RunState | None) -> RunState:
        """Do the next transaction; a smaller one as long as its rows are what fails.

        Without time for that the run is handed over: it keeps its place and the size that it has found.
        """
        hand_over = False
        while True:
            with (
                self._runner.pool.connection() as connection,
                self._tick.lease.guarding(connection),
                spans.span("batch", self._sweeper.name) as span,
            ):
                try:
                    return self._transaction(connection, strategy, before, hand_over=hand_over)
                except _StepFailed as problem:
                    error = problem.error
                    span.failed(error)
            self._tick.lease.check()
            failed = strategy.rows_failed
            if not strategy.recover(error):
                raise error
            metrics.ROWS_FAILED.labels(self._sweeper.name).inc(strategy.rows_failed - failed)
            hand_over = not strategy.stuck and (self._time_is_up() or strategy.rows_failed >= MOST_ROWS_FAILED)

    def _look(self, strategy: Strategy) -> None:
        """Have the strategy read on, where nothing is to be changed yet: without a transaction of the run's."""
        if not strategy.looks:
            return
        with self._runner.pool.connection() as connection, self._tick.lease.guarding(connection):
            strategy.look(partial(self._read, connection), self._time_is_up)

    def _read(self, connection: Connection[Any], query: LiteralString, **parameters: object) -> dict[str, Any]:
        self._tick.lease.check()
        with PipelinedTransaction(connection) as transaction, transaction.whole():
            self._begin(connection)
            reading = connection.cursor(row_factory=dict_row).execute(query, parameters)
        return only_row(reading)

    def _stopping(self) -> bool:
        """Return whether the process is to end; raises LeaseLost."""
        self._tick.lease.check()
        return self._runner.stopping()

    def _time_is_up(self) -> bool:
        return self._runner.stopping() or time.monotonic() >= self._ends

    def _has_failed(self, sweep: Sweep) -> bool:
        return bool(sweep.counts.get(self._sweeper.fails_by))

    def _transaction(
        self, connection: Connection[Any], strategy: Strategy, before: RunState | None, *, hand_over: bool
    ) -> RunState:
        """Do one step, or none to hand over; in the transaction that claims the slot if there is none `before`."""
        self._tick.lease.check()
        watch = Stopwatch(self._round_trip)
        ask = _ask_nothing if hand_over else strategy.ask
        with PipelinedTransaction(connection) as transaction:
            if before is None:
                before, run = self._claim(transaction, connection, strategy.older_than, ask, watch)
            else:
                run = self._go_on(transaction, connection, before.claimed, ask)
            step = Step({}, last=False, resume_at=strategy.resume_at)
            if not hand_over:
                step = self._strategy_step(strategy, run, begun=before.transactions > 0)
            watch.stepped()
            with transaction.commit():
                after = self._write_down(run, strategy, before, step, hand_over=hand_over)
                self._tick.lease.check()
        took = watch.committed()
        self._round_trip = took.round_trip
        reports.observe(self._sweeper.name, before, after, took.seconds)
        strategy.committed(took)
        self._runner.on_batch(took.seconds)
        self.newest = after
        self._runner.on_progress(after)
        return after

    def _claim(
        self,
        transaction: PipelinedTransaction,
        connection: Connection[Any],
        older_than: timedelta,
        ask: Callable[[Run], None],
        watch: Stopwatch,
    ) -> tuple[RunState, Run]:
        """Claim the newest due slot, open its run, and report what unfinished runs before this one had done.

        Raises NotDue when it was claimed already.
        """
        name, tick = self._sweeper.name, self._tick
        lengths = claims.Lengths(self._settings.tick, self._runner.lease)
        with transaction.begin():
            beginning = self._begin(connection)
            claiming = claims.claim(connection, name, tick.slot, lengths, tick.order)
        watch.begun()
        begun = transactions.begun(beginning)
        self._observe_clocks(begun.now)
        claim = claims.claimed(claiming, name, begun.now, tick.slot, lengths)
        if claim is None:
            with transaction.commit():
                pass  # what was put right of a clock that was ahead
            raise NotDue(Reason.SUPERSEDED)
        self._judge(transaction, connection, claim)
        cutoff = begun.now - older_than
        self._streak = claim.streak
        run = self._run(connection, begun, claim, began=begun.now, cutoff=cutoff)
        claimed = _answered(
            transaction.together(),
            lambda: runs.open_run(
                connection, name, claim, worker=self._runner.worker, cutoff=cutoff, requested_by=self._requested_by
            ),
            partial(ask, run),
            lambda answers: runs.opened(answers, name, claim, began=begun.now, cutoff=cutoff),
        )
        events = reports.interrupted_events(self._sweeper, claimed.interrupted)
        deliveries = tuple(self._runner.outbox.write(run.cursor, events))
        return RunState(claimed, Sweep(cutoff=cutoff), deliveries=deliveries), run

    def _judge(self, transaction: PipelinedTransaction, connection: Connection[Any], claim: Claim) -> None:
        """Have the brake judge what this run would do. Raises NotDue, with the slot given back, if that is held."""
        if self._settings.brake is None and not claim.braked:
            return
        name, tick, cursor = self._sweeper.name, self._tick, connection.cursor(row_factory=dict_row)
        claiming = Claiming(
            name, claim.token, claim.covered, claim.streak.failures, tick.mark, tick.order, self._limits.statement
        )
        hold = self._brake.judge(cursor, claiming)
        tick.lease.check()
        if hold is None:
            return
        written = [] if hold.known else self._runner.outbox.write(cursor, [self._sweeper.braked(hold)])
        with transaction.commit():
            pass
        self._runner.outbox.trigger(written)
        raise NotDue(Reason.BRAKED)

    def _go_on(
        self,
        transaction: PipelinedTransaction,
        connection: Connection[Any],
        claimed: Claimed,
        ask: Callable[[Run], None],
    ) -> Run:
        """Begin the transaction after another. Raises Fenced."""
        run = self._run(connection, self._begun, claimed.claim, began=claimed.began, cutoff=claimed.cutoff)
        begun, self._streak = _answered(
            transaction.begin(),
            lambda: Answers(self._begin(connection, durable=False), runs.fence(connection, claimed)),
            partial(ask, run),
            _fenced,
        )
        return replace(run, pages=begun.pages, partitions=begun.partitions)

    def _begin(self, connection: Connection[Any], *, durable: bool = True) -> Cursor[dict[str, Any]]:
        relation = self._sweeper.rests_without(self._settings)
        return transactions.begin(connection, relation, self._sweeper.table, self._limits, durable=durable)

    def _run(
        self, connection: Connection[Any], begun: Begun, claim: Claim, *, began: datetime, cutoff: datetime
    ) -> Run:
        self._begun = begun
        return Run(
            connection.cursor(row_factory=dict_row),
            self._sweeper.table,
            claim.slot,
            now=began,
            cutoff=cutoff,
            position=claim.position,
            batch_rows=claim.batch_rows,
            pages=begun.pages,
            partitions=begun.partitions,
            rows_per_page=begun.rows_per_page,
            most_pages=self._runner.most_pages,
            lock_timeout=self._limits.lock,
            targets=self._tick.targets,
        )

    def _observe_clocks(self, now: datetime) -> None:
        tick = self._tick
        if tick.taken_at:
            redis_ahead = moment(tick.taken_at) - now
            clocks.observe("redis", redis_ahead)
            clocks.observe("scheduler", redis_ahead + timedelta(microseconds=tick.ahead))
        clocks.observe("worker", datetime.now(UTC) - now)

    def _write_down(self, run: Run, strategy: Strategy, before: RunState, step: Step, *, hand_over: bool) -> RunState:
        """Write down what the step has done, and the run's end if that is one."""
        claimed, claim, cursor = before.claimed, before.claimed.claim, run.cursor
        out_of_time = step.resume_at is not None and (step.enough or self._time_is_up())
        handed_over = hand_over or (not step.last and out_of_time)
        sweep = before.sweep.plus(step.counts)
        if strategy.rows_failed:
            sweep = sweep.plus({"rows_failed": strategy.rows_failed - sweep.counts.get("rows_failed", 0)})
        after = replace(
            before,
            sweep=sweep,
            transactions=before.transactions + 1,
            over=step.last or handed_over,
            handed_over=handed_over,
            runs_a_pass=math.ceil(run.pages / (run.most_pages or 1)) if step.enough else before.runs_a_pass,
        )
        progress = Progress(sweep.changed, after.transactions, sweep.counts)
        if not after.over:
            runs.count(cursor, claimed, progress)
            return after
        if self._has_failed(sweep):
            runs.count(cursor, claimed, progress)
            runs.move_on(cursor, claimed, (step.resume_at or 0) if handed_over else 0)
            return after
        rest = _rest(claim, strategy, step.resume_at if handed_over else None)
        runs.finish(cursor, claimed, progress, rest)
        self._brake.settle(cursor, claimed.name, claim.token, handed_over=handed_over)
        runs.prune(cursor, claimed.name, self._runner.retention)
        events = reports.done_events(self._sweeper, claim, self._streak, sweep, strategy.rows_failed)
        written = self._runner.outbox.write(cursor, events)
        return replace(after, deliveries=(*after.deliveries, *written))

    def _strategy_step(self, strategy: Strategy, run: Run, *, begun: bool) -> Step:
        """Have the strategy do a step. Raises _StepFailed."""
        # The first step is never over: a run that was late to begin would get nothing done, again and again.
        over = self._time_is_up() if begun else self._runner.stopping()
        try:
            return strategy.step(run, over=over)
        except psycopg.Error as error:
            raise _StepFailed(error) from None

    def _count_failure(self, cursor: Cursor[dict[str, Any]], failure: Failure) -> tuple[Counted | None, Sweep]:
        """Write the failure into the ledger; return its streak, if it is one, and what nobody has reported yet."""
        now = transactions.look(cursor, self._sweeper.rests_without(self._settings), self._limits)
        telling = self._runner.telling
        if self.newest is not None:
            counted, committed = failures.fail(cursor, self.newest.claimed, failure, telling)
            return counted, Sweep(*committed) if committed else Sweep()
        name, slot = self._sweeper.name, slot_at(microseconds(now), self._settings.tick)
        began, worker = now - timedelta(seconds=self.seconds), self._runner.worker
        attempt = {"started_at": began, "worker": worker, "requested_by": self._requested_by}
        return failures.record_failed(cursor, name, slot, attempt, failure, telling), Sweep()


def _ask_nothing(_run: Run) -> None:
    pass


def _answered(
    block: AbstractContextManager[None],
    send: Callable[[], Answers],
    ask: Callable[[], None],
    read: Callable[[Answers], T],
) -> T:
    """Send what the ledger needs and what the step begins with; return what the ledger's answers are read as.

    What `read` raises comes first. Raises _StepFailed if only the step's is what fails.
    """
    answers = None
    try:
        with block:
            answers = send()
            ask()
    except psycopg.Error as error:
        if answers is None or not answers.arrived:
            raise
        read(answers)
        raise _StepFailed(error) from None
    return read(answers)


def _rest(claim: Claim, strategy: Strategy, resume_at: int | None) -> Rest:
    """Return what a run leaves to the next one; a pass through the table may have been shared by several."""
    failed = strategy.rows_failed + (claim.pass_rows_failed if claim.position else 0)
    ended = resume_at is None or resume_at < claim.position
    if ended:
        return Rest(resume_at, failed, 0, strategy.batch_rows)
    return Rest(resume_at, claim.rows_failed, failed, strategy.batch_rows)


def _fenced(answers: Answers) -> tuple[Begun, Streak]:
    """Read what begins a transaction. Raises Fenced, and NotDue when the table is gone."""
    beginning, fencing = answers.cursors
    return transactions.begun(beginning), runs.fenced(fencing)
