"""The broker: Dramatiq's on Redis, made to outlive an outage of Redis.

What differs from Dramatiq's own: a tick that cannot be enqueued is counted and forgotten, because its exception would
end the scheduler and the next tick is as good; consumers (`app.worker.consumer`) wait through an outage in place; in a
cluster all keys are in one slot; and the search for messages of dead workers needs no KEYS, which would go through all
keys of a Redis that is shared, and which careful users may not call.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import redis
import structlog
from dramatiq.brokers.redis import RedisBroker, _scripts
from dramatiq.common import dq_name

from app.core.role import SINK_QUEUE, SWEEP_QUEUE
from app.storage.redis import queue_prefix
from app.storage.redis_reasons import reason
from app.worker.consumer import POLL_MS, DelayConsumer, QueueConsumer
from app.worker.outage import Outage

if TYPE_CHECKING:
    from dramatiq import Consumer, Message

    from app.sweeping.schedule import Every

log = structlog.get_logger("broker")

#: After a failed call the scheduler leaves Redis alone for so long, so that one time-out is not one per sweeper.
PAUSE_SECONDS = 0.5


class Broker(RedisBroker):
    """Dramatiq's Redis broker for ticks."""

    def __init__(self, **words: Any) -> None:
        self._prefix: str | None = None
        super().__init__(**words)  # type: ignore[no-untyped-call]
        self.scripts["dispatch"] = self.client.register_script(_without_keys(_scripts["dispatch"]))
        self.outage = Outage()
        self._down_until = 0.0
        self._down = False
        #: Ticks of each actor that were lost since the last one that got through, which carries their number.
        self._lost: Counter[str] = Counter()

    @property
    def namespace(self) -> str:
        """The prefix of all keys; the server is asked once what it must be. Raises redis.RedisError."""
        if self._prefix is None:
            self._prefix = queue_prefix(self.client, self._namespace)
        return self._prefix

    @namespace.setter
    def namespace(self, namespace: str) -> None:
        self._namespace = namespace

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        """Create a consumer that waits through outages, and polls often enough for ticks."""
        kind = DelayConsumer if queue_name == dq_name(queue_name) else QueueConsumer
        return kind(self, queue_name, prefetch, min(timeout, POLL_MS))

    def check(self) -> None:
        """Raise the redis.RedisError that this process's queues are waiting to end, or that a ping meets."""
        if (error := self.outage.error) is not None:
            raise error
        self.client.ping()

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Enqueue a message. A periodic one is stamped first, and dropped with one log line if Redis is away."""
        actor = self.actors.get(message.actor_name)
        cadence = actor.options.get("periodic") if actor else None
        if cadence is None:
            return super().enqueue(message, delay=delay)
        try:
            if time.monotonic() < self._down_until:
                raise redis.ConnectionError
            message = super().enqueue(self._stamped(message, cadence), delay=delay)
        except redis.RedisError as error:
            self._lose(message, error)
        else:
            self._down = False
            if lost := self._lost.pop(message.actor_name, 0):
                log.info("ticks go out again", task=message.actor_name, lost=lost)
        return message

    def forward(self, message: Message[Any]) -> None:
        """Enqueue a message as it is. Raises redis.RedisError."""
        super().enqueue(message)

    def fetched(self, queue: str, body: bytes | None) -> list[str]:
        """Return the ids of the messages that this process has fetched from a queue and that have this very body."""
        ids = list(cast("set[bytes]", self.client.smembers(f"{self.namespace}:__acks__.{self.broker_id}.{queue}")))
        bodies = cast("list[bytes | None]", self.client.hmget(f"{self.namespace}:{queue}.msgs", ids)) if ids else []
        return [number.decode() for number, other in zip(ids, bodies, strict=True) if other == body]

    def drop(self, queue: str, number: str) -> None:
        """Delete a message that was fetched, by its id in Redis. Raises redis.RedisError."""
        self.do_ack(queue, number)
        self.client.hdel(f"{self.namespace}:{queue}.msgs", number)  # half of a failed script may have been done

    def _stamped(self, message: Message[Any], cadence: Every) -> Message[Any]:
        """Stamp a tick, in microseconds: its slot, and the time by Redis's clock and by ours."""
        if "scheduled_at" not in message.options or "slot" in message.options:
            return message
        seconds, micros = cast("tuple[int, int]", self.client.time())
        sent = seconds * 1_000_000 + micros
        stamp = {"slot": cadence.current(), "sent": sent, "clock": int(time.time() * 1_000_000)}
        return message.copy(options={**stamp, "lost": self._lost[message.actor_name]})

    def _lose(self, message: Message[Any], error: redis.RedisError) -> None:
        if not self._down:
            log.error("tick not sent, Redis is away", task=message.actor_name, error=reason(error))
        self._down = True
        self._lost[message.actor_name] += 1
        self._down_until = time.monotonic() + PAUSE_SECONDS


def _without_keys(script: bytes) -> bytes:
    """Return Dramatiq's script with a look at the queues that there are in place of KEYS."""
    search = b"""local ack_queues = redis.call("keys", dead_worker_acks .. "*")
        if not next(ack_queues) then"""
    assert script.count(search) == 1, "this is not the Dramatiq that the worker was made for"
    queues = [queue for name in (SWEEP_QUEUE, SINK_QUEUE) for queue in (name, dq_name(name))]
    keys = ", ".join(f'dead_worker_acks .. ".{queue}"' for queue in queues)
    return script.replace(search, f'if redis.call("exists", {keys}) == 0 then'.encode())
