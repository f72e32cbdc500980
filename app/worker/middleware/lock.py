"""Takes a sweeper's Redis lock before its actor runs and gives it back afterwards.

Dramatiq logs and swallows any exception of a before-hook but SkipMessage, and then runs the actor, here: unlocked.
So every error in here becomes a skip.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import structlog
from dramatiq.middleware import Middleware, SkipMessage

from app.core import metrics
from app.core.errors import describe
from app.sweeping import lock
from app.sweeping.actor import RetryRun
from app.sweeping.lock import Locks, Refusal, RunOutcome, Tick
from app.worker.tick_options import tick_options

if TYPE_CHECKING:
    from dramatiq import Broker
    from dramatiq.broker import MessageProxy

    from app.sweeping.schedule import Every

log = structlog.get_logger("scheduler")

#: By how much a look at a lock comes later than its end.
_A_MOMENT = timedelta(milliseconds=100)


class SweepLock(Middleware):
    """Lets one replica run a sweeper's tick; the others skip it, count it, and ask PostgreSQL nothing."""

    def __init__(self, locks: Locks) -> None:
        self._locks = locks

    @property
    def actor_options(self) -> set[str]:
        """Actors have a cadence; periodiq finds them by it."""
        return {"periodic"}

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Take the lock, or skip the message."""
        cadence: Every | None = broker.get_actor(message.actor_name).options.get("periodic")
        if cadence is None:
            return
        name, options = message.actor_name, tick_options(message.options)
        if not options.attempt:
            metrics.TICKS_LOST.labels(name).inc(options.lost)
        try:
            answer = self._locks.acquire(
                name,
                slot=options.slot,
                sent=options.sent,
                interval=cadence.interval,
                attempt=options.attempt,
                ahead=options.ahead,
            )
        except Exception as error:  # noqa: BLE001 - an actor must never run unlocked
            log.error("scheduler: lock not taken", task=name, error=describe(error).error)
            metrics.RUNS.labels(name, "failure").inc()
            metrics.TICKS_DROPPED.labels(name, "lock_error").inc()
            raise SkipMessage from None
        if isinstance(answer, Tick):
            lock.current.set(answer)
            return
        _count(name, answer, options.attempt)
        if answer is Refusal.SHORTENED and (wait := self._locks.length + _A_MOMENT) < cadence.interval:
            broker.enqueue(message.copy(), delay=wait // timedelta(milliseconds=1))
        raise SkipMessage

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Give the lock back, with what the actor returned: a run that is to be tried again has failed."""
        del broker, message
        tick = lock.current.get()
        if tick is not None:
            lock.current.set(None)
            outcome = exception.outcome if isinstance(exception, RetryRun) else result
            outcome = outcome if isinstance(outcome, RunOutcome) else lock.NOT_DONE
            self._locks.release(tick, done=outcome.done, claimed=outcome.claimed)
            outcome.afterwards()  # what may take long, while others run

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        """Give the lock back, should a later middleware have skipped the message."""
        self.after_process_message(broker, message)


def _count(name: str, refusal: Refusal, attempt: int) -> None:
    if attempt:  # a retry whose slot someone else has run or is running, or whose successor is out
        metrics.RUNS.labels(name, "failure").inc()
    elif refusal is Refusal.STALE:
        metrics.TICKS_DROPPED.labels(name, refusal.value).inc()
    else:
        metrics.RUNS.labels(name, "skipped_lock").inc()
        metrics.LOCK_SKIPPED.labels(name).inc()
