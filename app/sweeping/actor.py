"""What a sweeper's Dramatiq actor does with a tick: run it, count how it ended, have it retried.

The lock has been taken by the middleware and is given back by it; a tick that found it held never gets here.
"""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import structlog
from dramatiq.errors import Retry

from app.core import metrics
from app.core.backoff import exponential, jittered
from app.core.errors import LeaseLost, NotDue, Reason, SweepFailed
from app.sweeping import lock
from app.sweeping.lock import RunOutcome
from app.sweeping.run_state import RunState
from app.sweeping.runner import RunFailed, Runner
from app.sweeping.sweeper import Sweeper, SweeperSettings
from app.tracing import spans

log = structlog.get_logger("scheduler")

#: The wait before the first retry, and the longest one.
FIRST_RETRY, LONGEST_RETRY = timedelta(seconds=1), timedelta(hours=1)


class RetryRun(Retry):
    """A run failed and is worth another attempt after a wait."""

    def __init__(self, failed: SweepFailed, outcome: RunOutcome, wait: timedelta) -> None:
        super().__init__(str(failed), delay=wait // timedelta(milliseconds=1))
        self.outcome = outcome


class SweepActor:
    """The actor of one sweeper in one process."""

    def __init__(self, runner: Runner, sweeper: Sweeper[Any], settings: SweeperSettings) -> None:
        self._runner = runner
        self._sweeper = sweeper
        self._settings = settings
        self._resting = False

    def run(self) -> RunOutcome:
        """Do one run and return how it ended. Raises RetryRun when it is worth another attempt."""
        tick = lock.current.get()
        if tick is None:  # the middleware's doing; without a lock nothing may run
            raise LeaseLost
        count = metrics.RUNS.labels
        name = self._sweeper.name
        try:
            state = self._run(tick)
        except NotDue as error:
            return self._not_due(error.reason)
        except LeaseLost:
            count(name, "failure").inc()
            return lock.NOT_DONE
        except RunFailed as error:
            outcome = RunOutcome(done=False, afterwards=error.write_down)
            wait = backoff(tick.attempt, self._settings.tick)
            if wait is not None:
                log.info("scheduler: task will be tried again", task=name, wait=wait)
                raise RetryRun(error, outcome, wait) from None
            count(name, "failure").inc()
            return outcome
        count(name, "success").inc()
        self._rest(missing=False)
        return RunOutcome(done=True, claimed=state.claimed.slot)

    def _run(self, tick: lock.Tick) -> RunState:
        name = self._sweeper.name
        with spans.span("run", name, slot=tick.slot, attempt=tick.attempt + 1) as span:
            state = self._runner.run(self._sweeper, self._settings, tick)
            claimed = state.claimed
            span.note(
                slot=claimed.slot,
                batches=state.transactions,
                covered=claimed.claim.covered,
                handed_over=state.handed_over,
            )
            span.note(lateness_seconds=claimed.lateness, changed=state.sweep.changed, **state.sweep.counts)
        return state

    def _not_due(self, reason: Reason) -> RunOutcome:
        name = self._sweeper.name
        if reason is Reason.TABLE_MISSING:
            self._rest(missing=True)
            return lock.NOT_DONE
        metrics.TICKS_DROPPED.labels(name, reason.value).inc()
        metrics.RUNS.labels(name, "skipped_lock").inc()
        if reason is Reason.SUPERSEDED:
            metrics.LOCK_SKIPPED.labels(name).inc()
        return lock.DONE  # so that no other replica asks PostgreSQL

    def _rest(self, *, missing: bool) -> None:
        """Log once that the api's table is missing, and once that it is there."""
        metrics.TABLE_MISSING.labels(self._sweeper.name).set(missing)
        if missing and not self._resting:
            table = self._sweeper.rests_without(self._settings)
            text = "the api's table is missing; the sweep rests until it is there"
            log.warning(text, task=self._sweeper.name, table=table)
        elif self._resting and not missing:
            log.info("the api's table is there; the sweep goes on", task=self._sweeper.name)
        self._resting = missing


def backoff(attempt: int, interval: timedelta) -> timedelta | None:
    """Return the wait after failed attempt number `attempt` (from 0), doubled each time; None to leave it be.

    A retry that would come after the next tick is left to that tick, which starts from the beginning: so an outage
    does not pile up chains of retries, one for each tick of it.
    """
    planned = exponential(FIRST_RETRY, attempt + 1, interval)
    if planned * 2 - FIRST_RETRY >= interval:  # the sum of all waits up to and with this one
        return None
    return jittered(min(planned, LONGEST_RETRY), random.random())  # noqa: S311 - not a secret
