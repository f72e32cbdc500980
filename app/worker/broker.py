"""The broker: Dramatiq's on Redis, made to outlive an outage of Redis.

Two things differ from Dramatiq's own. A tick that cannot be enqueued is counted and forgotten, because its
exception would end the scheduler and the next tick is as good. A consumer waits through an outage in place: being
torn down and built again, it would drop the delayed messages that it holds, and come back seconds later.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import redis
import structlog
from dramatiq.brokers.redis import RedisBroker, _RedisConsumer
from dramatiq.errors import ConnectionClosed

from app.core.errors import describe

if TYPE_CHECKING:
    from dramatiq import Consumer, Message
    from dramatiq.broker import MessageProxy

    from app.sweeping.schedule import Every

log = structlog.get_logger("broker")

#: An idle consumer asks for messages this often, which bounds how late a tick starts. Dramatiq's default is 1 s.
POLL_MS = 100
#: After a failed call the scheduler leaves Redis alone for so long, so that one time-out is not one per sweeper.
PAUSE_SECONDS = 0.5


class Broker(RedisBroker):
    """Dramatiq's Redis broker for ticks."""

    _down_until = 0.0

    def __init__(self, **words: Any) -> None:
        super().__init__(**words)  # type: ignore[no-untyped-call]
        #: Ticks of each actor that were lost since the last one that got through, which carries their number.
        self._lost: Counter[str] = Counter()

    @property
    def consumer_class(self) -> type[_Consumer]:
        """The consumer that waits."""
        return _Consumer

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        """Create a consumer that polls often enough for ticks."""
        return super().consume(queue_name, prefetch, min(timeout, POLL_MS))

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Enqueue a message. A periodic one is stamped first, and dropped with one log line if Redis is away."""
        cadence = self.actors[message.actor_name].options.get("periodic")
        if cadence is None:
            return super().enqueue(message, delay=delay)
        try:
            if time.monotonic() < self._down_until:
                raise redis.ConnectionError
            message = super().enqueue(self._stamped(message, cadence), delay=delay)
        except redis.RedisError as error:
            self._lose(message, error)
        else:
            if lost := self._lost.pop(message.actor_name, 0):
                log.info("ticks go out again", task=message.actor_name, lost=lost)
        return message

    def _stamped(self, message: Message[Any], cadence: Every) -> Message[Any]:
        """Write down the slot that a tick of the scheduler is for, and when it was sent by the server's clock."""
        if "scheduled_at" not in message.options or "slot" in message.options:
            return message
        seconds, micros = cast("tuple[int, int]", self.client.time())
        stamp = {"slot": cadence.current(), "sent": seconds * 1_000_000 + micros}
        return message.copy(options={**stamp, "lost": self._lost[message.actor_name]})

    def _lose(self, message: Message[Any], error: redis.RedisError) -> None:
        if time.monotonic() >= self._down_until:
            log.error("tick not sent, Redis is away", task=message.actor_name, error=describe(error).error)
        self._lost[message.actor_name] += 1
        self._down_until = time.monotonic() + PAUSE_SECONDS


class _Consumer(_RedisConsumer):
    """A consumer that has no messages while Redis is away, instead of ending."""

    _away = False

    def __next__(self) -> MessageProxy | None:
        try:
            message = cast("MessageProxy | None", super().__next__())  # type: ignore[no-untyped-call]
        except ConnectionClosed:
            if not self._away:
                log.error("Redis is away; waiting", queue=self.queue_name)
            self._away = True
            time.sleep(POLL_MS / 1000)
            return None
        if self._away:
            self._away = False
            log.info("Redis is back", queue=self.queue_name)
        return message
