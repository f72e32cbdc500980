"""What the actors of the queue `sinks` do: a batch for one receiver, and the relay's rounds.

message -> claim (PostgreSQL) -> attempts, side by side (no lock, a deadline each) -> settle (PostgreSQL)
        -> retries by the middleware, and a message for what else is due
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

import psycopg
import structlog
from psycopg_pool import PoolTimeout

from app.core import metrics
from app.core.errors import Fault, SinkRejected, SinkUnavailable, describe
from app.notify import receivers, relay
from app.notify.delivery.batch import Attempted, Batch, ClaimedDelivery, DeliveryOutcome
from app.notify.delivery.claim import UnknownReceiver, claim
from app.notify.delivery.send import send_side_by_side
from app.notify.delivery.settle import Settlement, settle
from app.notify.policy import LONGEST_BACKOFF
from app.notify.relay import Pruner
from app.tracing import spans

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg_pool import ConnectionPool

    from app.notify.outbox import Outbox
    from app.notify.routing import Target
    from app.notify.settings import NotificationSettings
    from app.notify.sink import Transport

log = structlog.get_logger("notification")

#: Runs attempts on an event loop, hands them a transport, and returns at their end.
Run = Callable[[Callable[["Transport"], Coroutine[Any, Any, None]]], None]

#: After this long a message that is for another process comes back to the queue: for a receiver that only others are
#: configured for, or to one that is to end.
ELSEWHERE = timedelta(seconds=1)


class RetryLater(Exception):
    """Deliveries are to be attempted again, each after a wait of its own."""

    def __init__(self, waits: Mapping[int, timedelta]) -> None:
        super().__init__(f"{len(waits)} deliveries are tried again")
        self.waits = waits


@dataclass
class Notifier:
    """Delivers notifications, for one process."""

    pool: ConnectionPool[Connection[Any]]
    targets: Mapping[str, Target]
    settings: NotificationSettings
    outbox: Outbox
    run: Run
    stopping: Callable[[], bool] = lambda: False

    def deliver(self, delivery: int) -> None:
        """Attempt what the receiver of this delivery is to be sent now. Raises RetryLater for what is to be repeated.

        The message may be of an older release, which sent one for each delivery: then most find nothing due.
        """
        if self.stopping():
            raise RetryLater({delivery: ELSEWHERE})
        try:
            with self.pool.connection() as connection:
                batch = claim(connection, delivery, self.targets, self.settings)
        except UnknownReceiver:
            raise RetryLater({delivery: ELSEWHERE}) from None
        except (psycopg.Error, PoolTimeout) as error:
            log.warning("delivery put off, PostgreSQL is away", **describe(error)._asdict())
            return
        if batch is None or not (batch.deliveries or batch.more):
            return
        delivering = _Delivering(self, batch)
        with spans.span("delivery", batch.target.name, deliveries=len(batch.deliveries), more=batch.more):
            delivering.go()
        if delivering.due:
            now = time.monotonic()
            raise RetryLater({number: timedelta(seconds=max(at - now, 0)) for number, at in delivering.due.items()})

    def relay(self, check: Callable[[], None] = lambda: None) -> bool:
        """Do one round: give up what is too old, trigger what is due, prune. Return whether PostgreSQL was there.

        `check` is called between its steps, and ends the round by what it raises.
        """
        settings, farthest = self.settings, self._farthest
        targets = [(target.name, target.fingerprint) for target in self.targets.values()]
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
        self.outbox.wake(due)
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
        settings = self.settings
        return Pruner(settings.retention, settings.dead_retention)

    @property
    def _farthest(self) -> timedelta:
        """The longest wait that anything here may be told to make."""
        settings = self.settings
        own = (settings.repeat, settings.pace * settings.burst, settings.cooldown, settings.lease)
        return max(LONGEST_BACKOFF, *own) + timedelta(minutes=1)


class _Delivering:
    """One batch on its way."""

    def __init__(self, notifier: Notifier, batch: Batch) -> None:
        self._notifier = notifier
        self._batch = batch
        self._more = batch.more
        #: What has no result yet, by number; and the results that are not recorded yet.
        self._open = {delivery.id: delivery for delivery in batch.deliveries}
        self._ended: list[Attempted] = []
        self._unsent: list[ClaimedDelivery] = []
        #: When the next attempt of each delivery that failed is due, by the monotonic clock.
        self.due: dict[int, float] = {}

    def go(self) -> None:
        """Attempt the batch and settle it."""
        batch, seconds = self._batch, self._notifier.settings.timeout.total_seconds()
        ended: Sequence[Attempted] = ()
        unsent: Sequence[ClaimedDelivery] = ()

        async def send(transport: Transport) -> None:
            nonlocal ended, unsent
            ended, unsent = await send_side_by_side(
                batch, transport, seconds=seconds, may_begin=self._may_begin, settle=self._settle_some
            )

        try:
            self._notifier.run(send)
        except Exception as problem:  # noqa: BLE001 - what failed is our own way to it
            log.error("attempts failed in a way of their own", sink=batch.target.name, error=describe(problem).error)
            ended = [Attempted(delivery, SinkUnavailable(Fault.PROTOCOL), 0) for delivery in self._open.values()]
        self._settle(ended, unsent, more=self._more)

    def _may_begin(self) -> bool:
        """Return whether another attempt would end before the lease, and this process."""
        begun_for = timedelta(seconds=time.monotonic() - self._batch.claimed_at)
        return begun_for < self._notifier.settings.begin_within and not self._notifier.stopping()

    def _settle_some(self, ended: Sequence[Attempted], unsent: Sequence[ClaimedDelivery], all_begun: bool) -> None:
        """Settle while others are under way: those that hang must not keep the receiver's other deliveries waiting."""
        more, self._more = self._more and all_begun, self._more and not all_begun
        try:
            self._settle(ended, unsent, more=more)
        except Exception as problem:  # noqa: BLE001 - it must not cost the attempts that are under way
            log.error("settlement failed in a way of its own", error=describe(problem).error)

    def _settle(self, ended: Sequence[Attempted], unsent: Sequence[ClaimedDelivery], *, more: bool) -> None:
        """Record how attempts ended, and have what follows from it done; what cannot be, with the next ones."""
        self._ended += ended
        self._unsent += unsent
        for delivery in (*(attempted.delivery for attempted in ended), *unsent):
            self._open.pop(delivery.id, None)
        settlement = self._recorded(self._ended, self._unsent, more=more)
        if settlement is None:
            return
        ended, self._ended, self._unsent = self._ended, [], []
        for attempted, outcome in settlement.outcomes:
            _report(self._batch.target, attempted, outcome)
            if outcome.state == "pending":
                self.due[attempted.delivery.id] = time.monotonic() + outcome.wait.total_seconds()
        if len(settlement.outcomes) < len(ended):
            log.warning("attempts outlived their lease; another one decides", sink=self._batch.target.sink.name)
        self._notifier.outbox.trigger(settlement.written)
        if settlement.follow is not None:
            self._notifier.outbox.wake([settlement.follow])

    def _recorded(
        self, ended: Sequence[Attempted], unsent: Sequence[ClaimedDelivery], *, more: bool
    ) -> Settlement | None:
        """Record how attempts ended, and keep trying for a while: what is not recorded is sent again."""
        here = self._notifier
        for pause in (0.1, 0.5, 1.0, 2.0, None):
            try:
                with here.pool.connection() as connection:
                    return settle(
                        connection,
                        self._batch,
                        ended,
                        unsent,
                        more=more,
                        settings=here.settings,
                        outbox=here.outbox,
                    )
            except (psycopg.Error, PoolTimeout) as problem:
                if pause is None:
                    log.error("attempts not settled; they are made again", **describe(problem)._asdict())
                else:
                    time.sleep(pause)
        return None


def _report(target: Target, attempted: Attempted, outcome: DeliveryOutcome) -> None:
    """Count and log what became of a delivery."""
    delivery, error, sink = attempted.delivery, attempted.error, target.sink.name
    result = "delivered" if error is None else "rejected" if isinstance(error, SinkRejected) else "unavailable"
    metrics.ATTEMPTS.labels(sink, result, error.fault if error else "").inc()
    metrics.ATTEMPT_SECONDS.labels(sink).observe(attempted.seconds)
    facts: dict[str, Any] = {"sink": target.name, "event_id": delivery.notification.id, "attempt": delivery.attempt}
    if outcome.state != "pending":
        metrics.NOTIFIED.labels(sink, outcome.state).inc()
    if delivery.attempt == 1 and delivery.notification.event.tallies:
        metrics.NOTIFIED.labels(sink, "digested").inc(delivery.events)
    if outcome.state == "delivered":
        metrics.DELIVERY_AGE.labels(sink).observe(outcome.age)
        log.debug("notification delivered", **facts, events=delivery.events)
    elif outcome.state == "dead":
        log.error("notification is a dead letter", **facts, reason=outcome.reason, events=delivery.events)
    elif outcome.reason == Fault.TLS and delivery.attempt == 1:
        log.error("sink's certificate is not trusted; no resending will help", **facts)
    else:
        log.info("notification not delivered yet", **facts, reason=outcome.reason, again_in=outcome.wait)
    if outcome.final_states:
        sinks = list(outcome.final_states)
        log.error("notification did not reach every sink", event_id=delivery.notification.id, sinks=sinks)
    if outcome.opened:
        log.warning("sink is left alone for a while", sink=target.name, reason=outcome.reason, rest=outcome.opened)
    elif outcome.recovered:
        log.info("sink answers again", sink=target.name)
    if outcome.switched_off:
        log.error("sink switched off until its configuration changes", sink=target.name, reason=outcome.reason)
