"""What is told of a run: events for people, numbers for metrics, lines for the log. It decides nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import structlog

from app.core import metrics
from app.core.errors import Failure, Fenced, SweepFailed, raised_at
from app.sweeping.ledger.claims import Claim
from app.sweeping.ledger.runs import Interrupted
from app.sweeping.schedule import moment
from app.sweeping.streak import Counted, Streak
from app.sweeping.sweeper import Sweep, Sweeper
from app.tracing import spans

if TYPE_CHECKING:
    from app.core.events import Event
    from app.sweeping.run_state import RunState

log = structlog.get_logger("scheduler")


def failed_events(sweeper: Sweeper[Any], failure: Failure, sweep: Sweep, counted: Counted | None) -> list[Event]:
    """Return the events of what was changed before the failure, and of its streak if that is to be told now."""
    if counted is None:
        return []
    events = [sweeper.done(sweep)] if sweep.changed else []
    if counted.tell:
        events.append(sweeper.failed(str(SweepFailed(failure)), sweep, counted.streak))
    return events


def done_events(sweeper: Sweeper[Any], claim: Claim, streak: Streak, sweep: Sweep, rows_failed: int) -> list[Event]:
    """Return the events of a run's end; rows that it could not sweep are news unless the run before had some."""
    events = [sweeper.recovered(streak.failures)] if streak.told else []
    if sweep.changed:
        events.append(sweeper.done(sweep))
    if rows_failed and not (claim.rows_failed or claim.pass_rows_failed):
        events.append(sweeper.rows_failed(rows_failed))
    return events


def interrupted_events(sweeper: Sweeper[Any], runs: Iterable[Interrupted]) -> list[Event]:
    """Return the events of what runs had changed that never came to their end."""
    sweeps = [Sweep(run.changed, run.counts, run.cutoff) for run in runs if run.changed]
    return [sweeper.done(sweep, interrupted=1) for sweep in sweeps]


def observe(name: str, before: RunState, after: RunState, seconds: float) -> None:
    """Count a transaction that is committed, and took so many seconds."""
    claimed = after.claimed
    if not before.transactions:
        metrics.LATENESS.labels(name).observe(claimed.lateness)
        for run in claimed.interrupted:
            metrics.INTERRUPTED.labels(name).inc()
            log.warning("an earlier run was interrupted", task=name, changed=run.changed)
    metrics.SKIPPED_LOCKED.labels(name).inc(
        after.sweep.counts.get("skipped_locked", 0) - before.sweep.counts.get("skipped_locked", 0)
    )
    metrics.BATCHES.labels(name).inc()
    metrics.BATCH_SECONDS.labels(name).observe(seconds)
    metrics.ROWS_CHANGED.labels(name).inc(after.sweep.changed - before.sweep.changed)
    spans.note(changed=after.sweep.changed - before.sweep.changed, batch=after.transactions)


def count_loss(name: str, error: BaseException) -> None:
    """Count and tell that a run has lost its lock."""
    metrics.LEASE_LOST.labels(name).inc()
    metrics.FENCED.labels(name).inc(isinstance(error, Fenced))
    log.warning("scheduler: lock lease lost", task=name)


def done(name: str, state: RunState) -> None:
    """Count and tell that a run has ended well; quietly, if it changed nothing and made up for nothing."""
    claimed, sweep = state.claimed, state.sweep
    metrics.HANDED_OVER.labels(name).inc(state.handed_over)
    metrics.RUNS_A_PASS.labels(name).set(state.runs_a_pass)
    level = log.info if sweep.changed or claimed.claim.covered else log.debug
    level(
        "sweep done",
        task=name,
        slot=moment(claimed.slot),
        changed=sweep.changed,
        batches=state.transactions,
        covered=claimed.claim.covered,
        handed_over=state.handed_over,
        **sweep.counts,
    )


def where(failure: Failure, error: BaseException) -> dict[str, object]:
    """Name the error and the line it came from; texts of foreign errors are never shown."""
    end = raised_at(error.__traceback__)
    at = f"{end.tb_frame.f_code.co_name}:{end.tb_lineno}" if end else ""
    return {**failure._asdict(), "at": at}
