"""What the actors of the queue `sinks` do: one attempt for one delivery, and the relay's rounds.

message -> claim (PostgreSQL) -> attempt (no lock, one deadline) -> settle (PostgreSQL) -> retry by the middleware
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

import psycopg
import structlog
from psycopg_pool import PoolTimeout

from app.core import metrics
from app.core.errors import Fault, SinkRejected, SinkUnavailable, describe
from app.core.events import Notification
from app.notify import receivers, relay
from app.notify.deliveries import ClaimedDelivery, Deliveries, DeliveryOutcome, UnknownReceiver
from app.notify.policy import LONGEST_BACKOFF
from app.notify.relay import Pruner

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg_pool import ConnectionPool

    from app.notify.outbox import Outbox
    from app.notify.routing import Target
    from app.notify.sink import Transport

log = structlog.get_logger("notification")

#: Runs an attempt on an event loop, hands it a transport, and returns at its end.
Run = Callable[[Callable[["Transport"], Coroutine[Any, Any, None]]], None]


#: After this long a message for a receiver that only other processes are configured for comes back to the queue.
ELSEWHERE = timedelta(seconds=1)


#: Seconds that an attempt has to tidy up after its deadline.
TIDY_UP = 1.0


class RetryLater(Exception):
    """This delivery is to be attempted again after a wait."""

    def __init__(self, delivery: int, wait: timedelta) -> None:
        super().__init__(f"delivery {delivery} is tried again")
        self.delivery, self.wait = delivery, wait


async def attempt(target: Target, notification: Notification, transport: Transport, seconds: float) -> None:
    """Send once, within so many seconds in all. Raises SinkRejected or SinkUnavailable, and nothing else.

    An attempt that is cut has another second to tidy up; one that hangs in that is left behind.
    """
    sending = asyncio.ensure_future(target.sink.send(notification, target.settings, target.receiver, transport))
    try:
        await _until(sending, seconds)
        if sending.done():
            sending.result()
            return
        sending.cancel()
        await _until(sending, TIDY_UP)
        if not sending.done():
            log.error("attempt does not end; it is left behind", sink=target.sink.name)
        elif not sending.cancelled() and sending.exception() is None:
            return  # it had got through
        raise SinkUnavailable(Fault.TIMEOUT)  # noqa: TRY301 - as if the sink had raised it
    except (SinkRejected, SinkUnavailable):
        raise
    except TimeoutError:
        raise SinkUnavailable(Fault.TIMEOUT) from None
    except Exception as error:  # noqa: BLE001 - a bug in a sink must not lose a notification
        log.error("sink failed in a way of its own", sink=target.sink.name, error=describe(error).error)
        raise SinkUnavailable(Fault.PROTOCOL) from None


async def _until(task: asyncio.Future[None], seconds: float) -> None:
    """Wait for a task, at most so many seconds; cancel it when the one who waits is cancelled."""
    try:
        await asyncio.wait([task], timeout=seconds)
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task], timeout=TIDY_UP)
        raise


@dataclass
class Notifier:
    """Delivers notifications, for one process."""

    pool: ConnectionPool[Connection[Any]]
    deliveries: Deliveries
    outbox: Outbox
    run: Run

    def deliver(self, delivery: int) -> None:
        """Attempt what the receiver of this delivery is to be sent now. Raises RetryLater when it is to be repeated."""
        try:
            with self.pool.connection() as connection:
                claimed = self.deliveries.claim(connection, delivery)
        except UnknownReceiver:
            raise RetryLater(delivery, ELSEWHERE) from None
        except (psycopg.Error, PoolTimeout) as error:
            log.warning("delivery put off, PostgreSQL is away", **describe(error)._asdict())
            return
        if claimed is None:
            return
        outcome = self._settle(claimed, self._attempt(claimed))
        if outcome is None:
            return
        self._report(claimed, outcome)
        self.outbox.trigger(outcome.follow)
        if outcome.state == "pending":
            raise RetryLater(claimed.id, outcome.wait)

    def _settle(self, claimed: ClaimedDelivery, error: SinkRejected | SinkUnavailable | None) -> DeliveryOutcome | None:
        """Record how the attempt ended, and keep trying for a while: what is not recorded is sent again."""
        for pause in (0.1, 0.5, 1.0, 2.0, None):
            try:
                with self.pool.connection() as connection:
                    outcome = self.deliveries.settle(connection, claimed, error)
            except (psycopg.Error, PoolTimeout) as problem:
                if pause is None:
                    log.error("attempt not settled; it is made again", **describe(problem)._asdict())
                    return None
                time.sleep(pause)
            else:
                if outcome is None:
                    log.warning("attempt outlived its lease; another one decides", sink=claimed.target.name)
                return outcome
        return None

    def relay(self, check: Callable[[], None] = lambda: None) -> bool:
        """Do one round: give up what is too old, trigger what is due, prune. Return whether PostgreSQL was there.

        `check` is called between its steps, and ends the round by what it raises.
        """
        settings, farthest = self.deliveries.settings, self._farthest
        targets = [(target.name, target.fingerprint) for target in self.deliveries.targets.values()]
        try:
            with self.pool.connection() as connection:
                for target, ahead in relay.put_right(connection, farthest).items():
                    receivers.tell_ahead(target, ["due_at"], ahead)
                check()
                given_up = relay.give_up(connection, settings.give_up)
                check()
                due = relay.due(connection, targets, farthest)
        except (psycopg.Error, PoolTimeout) as error:
            log.warning("relay put off, PostgreSQL is away", **describe(error)._asdict())
            return False
        for target, number in Counter(given_up).items():
            metrics.NOTIFIED.labels(target.partition(":")[0], "dead").inc(number)
            log.error("notifications given up", sink=target, reason="gave_up", number=number)
        self.outbox.trigger(due)
        check()
        return self._prune()

    def _prune(self) -> bool:
        """Prune, last and by itself: what is old must not stand in the way of what is due."""
        try:
            with self.pool.connection() as connection:
                self._pruner.prune(connection)
        except (psycopg.Error, PoolTimeout) as error:
            log.warning("notifications not pruned", **describe(error)._asdict())
            return False
        return True

    @cached_property
    def _pruner(self) -> Pruner:
        settings = self.deliveries.settings
        return Pruner(settings.retention, settings.dead_retention)

    @property
    def _farthest(self) -> timedelta:
        """The longest wait that anything here may be told to make."""
        settings = self.deliveries.settings
        own = (settings.repeat, settings.pace * settings.burst, settings.cooldown, settings.lease)
        return max(LONGEST_BACKOFF, *own) + timedelta(minutes=1)

    def _attempt(self, claimed: ClaimedDelivery) -> SinkRejected | SinkUnavailable | None:
        sink, started = claimed.target.sink.name, time.perf_counter()
        error: SinkRejected | SinkUnavailable | None = None
        try:
            seconds = self.deliveries.settings.timeout.total_seconds()
            self.run(lambda transport: attempt(claimed.target, claimed.notification, transport, seconds))
        except (SinkRejected, SinkUnavailable) as problem:
            error = problem
        except Exception as problem:  # noqa: BLE001 - what failed is our own way to it
            log.error("attempt failed in a way of its own", sink=sink, error=describe(problem).error)
            error = SinkUnavailable(Fault.PROTOCOL)
        outcome = "delivered" if error is None else "rejected" if isinstance(error, SinkRejected) else "unavailable"
        metrics.ATTEMPTS.labels(sink, outcome, error.fault if error else "").inc()
        metrics.ATTEMPT_SECONDS.labels(sink).observe(time.perf_counter() - started)
        return error

    def _report(self, claimed: ClaimedDelivery, outcome: DeliveryOutcome) -> None:
        name = claimed.target.name
        facts: dict[str, Any] = {"sink": name, "event_id": claimed.notification.id, "attempt": claimed.attempt}
        sink = claimed.target.sink.name
        if outcome.state != "pending":
            metrics.NOTIFIED.labels(sink, outcome.state).inc()
        if claimed.attempt == 1 and claimed.notification.event.tallies:
            metrics.NOTIFIED.labels(sink, "digested").inc(claimed.events)
        if outcome.state == "delivered":
            metrics.DELIVERY_AGE.labels(sink).observe(outcome.age)
            log.debug("notification delivered", **facts, events=claimed.events)
        elif outcome.state == "dead":
            log.error("notification is a dead letter", **facts, reason=outcome.reason, events=claimed.events)
        elif outcome.reason == Fault.TLS and claimed.attempt == 1:
            log.error("sink's certificate is not trusted; no resending will help", **facts)
        else:
            log.info("notification not delivered yet", **facts, reason=outcome.reason, again_in=outcome.wait)
        if outcome.final_states:
            sinks = list(outcome.final_states)
            log.error("notification did not reach every sink", event_id=claimed.notification.id, sinks=sinks)
        if outcome.opened:
            log.warning("sink is left alone for a while", sink=name, reason=outcome.reason, rest=outcome.opened)
        elif outcome.recovered:
            log.info("sink answers again", sink=name)
        if outcome.switched_off:
            log.error("sink switched off until its configuration changes", sink=name, reason=outcome.reason)
