"""The broker: Dramatiq's on Redis, made to outlive an outage of Redis.

What differs from Dramatiq's own: a tick that cannot be enqueued is counted and forgotten, because its exception would
end the scheduler and the next tick is as good; consumers (`app.worker.consumer`) wait for messages in Redis, and
through an outage in place; in a cluster all keys are in one slot; signs of life and the search for messages of dead
workers come at regular times, not with every command and by chance; and that search needs no KEYS, which would go
through all keys of a Redis that is shared, and which careful users may not call.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import redis
import structlog
from dramatiq.brokers.redis import RedisBroker, _scripts
from dramatiq.common import dq_name
from dramatiq.middleware import Middleware

from app.core.role import SINK_QUEUE, SWEEP_QUEUE
from app.storage.redis import queue_prefix
from app.storage.redis_reasons import REFUSES, reason
from app.tracing import spans
from app.worker.consumer import DelayConsumer, QueueConsumer
from app.worker.outage import Outage

if TYPE_CHECKING:
    from dramatiq import Consumer, Message, Worker

    from app.storage.redis import Client, WaitingClient
    from app.sweeping.schedule import Every, Slot

log = structlog.get_logger("broker")

#: After a failed call the scheduler leaves Redis alone for so long, so that one time-out is not one per sweeper.
PAUSE_SECONDS = 0.5
#: Where Redis does not let us wait, it is asked this often, seconds; and after so many waiting is tried again.
POLL_SECONDS, POLLS_FOR_SECONDS = 0.1, 10.0
#: Zero is for ever, and so is what Redis 6.2 cuts off to zero milliseconds, as it does with 0.001.
LEAST_WAIT_SECONDS = 0.01
#: How long a moment is, in which one look at Redis's clock is enough.
_MOMENT_SECONDS = 0.25


class Broker(RedisBroker):
    """Dramatiq's Redis broker for ticks. Consumers wait for messages with `waiting`, all else is done with `client`."""

    def __init__(self, *, client: Client, waiting: WaitingClient, serves_sweeps: bool = False, **words: Any) -> None:
        self._prefix: str | None = None
        super().__init__(client=client, **words)  # type: ignore[no-untyped-call]
        self.scripts["dispatch"] = self.client.register_script(_adapted(_scripts["dispatch"]))
        self.add_middleware(_EndWaits())
        self.waiting = waiting
        self.serves_sweeps = serves_sweeps
        self.ending = False
        self.outage = Outage()
        self._polls_until = 0.0
        self._refused = False
        self._down_until = 0.0
        self._down = False
        #: When Redis was asked for the time, monotonic seconds, and what it said, microseconds.
        self._asked_time = -math.inf, 0
        #: When a tick was last sent, monotonic seconds.
        self.ticked_at = -math.inf
        #: Ticks of each actor that were lost since the last one that got through, which carries their number.
        self._lost: Counter[str] = Counter()
        #: The newest slot of each actor whose tick was lost.
        self._lost_slots: dict[str, Slot] = {}

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
        """Create a consumer that waits through outages.

        Where sweeps are served as well, notifications may have half of the threads, however long a sink takes.
        Dramatiq asks for two messages a thread.
        """
        kind = DelayConsumer if queue_name == dq_name(queue_name) else QueueConsumer
        if queue_name == SINK_QUEUE and self.serves_sweeps:
            prefetch = max(prefetch // 4, 1)
        return kind(self, queue_name, prefetch, timeout)

    def wait(self, queue: str, seconds: float) -> bool:
        """Wait so long at most for a message in a queue, which stays in it; return whether to fetch.

        No error is raised, since a fetch meets it as well; what keeps us from waiting is no reason not to fetch.
        """
        if time.monotonic() >= self._polls_until:
            try:
                key = f"{self.namespace}:{queue}"
                # The head is moved to where it is, which wakes each of those that wait and changes nothing.
                return bool(
                    self.waiting.blmove(key, key, cast("int", max(seconds, LEAST_WAIT_SECONDS)), "LEFT", "LEFT")
                )
            except redis.RedisError as error:
                if self.ending:
                    return False
                self._polls_until = time.monotonic() + POLLS_FOR_SECONDS
                self._tell_refused(error)
                cast("Client", self.client).leave()  # should it be silent, no other connection needs to find out
        time.sleep(min(seconds, POLL_SECONDS))
        return True

    def end_waits(self) -> None:
        """Have consumers fetch nothing from now on, and wait for nothing."""
        self.ending = True
        self.waiting.end_waits()

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
            message = self._send_tick(message, cadence, delay)
        except redis.RedisError as error:
            self._lose(message, cadence, error)
        else:
            self._down, self.ticked_at = False, time.monotonic()
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

    def _should_do_maintenance(self, command: str) -> int:
        return int(command == "look" and self.maintenance_chance > 0)

    def _tell_refused(self, error: redis.RedisError) -> None:
        refused = isinstance(error, redis.ResponseError) and reason(error) not in REFUSES - {"NOPERM"}
        if refused and not self._refused:
            log.warning(
                "Redis does not let us wait for messages (BLMOVE); asking ten times a second", error=reason(error)
            )
        self._refused |= refused

    def _send_tick(self, message: Message[Any], cadence: Every, delay: int | None) -> Message[Any]:
        """Enqueue a message of an actor with a cadence: a new tick, or a retry as it is. Raises redis.RedisError."""
        stamped = self._stamped(message, cadence)
        if stamped is message:
            return super().enqueue(message, delay=delay)
        with spans.span("tick", message.actor_name, slot=stamped.options["slot"], lost=stamped.options["lost"]):
            return super().enqueue(stamped, delay=delay)

    def _stamped(self, message: Message[Any], cadence: Every) -> Message[Any]:
        """Stamp a tick, in microseconds: its slot, and the time by Redis's clock and by ours."""
        if "scheduled_at" not in message.options or "slot" in message.options:
            return message
        stamp = {"slot": cadence.current(), "sent": self._redis_time(), "clock": int(time.time() * 1_000_000)}
        return message.copy(options={**stamp, "lost": self._lost[message.actor_name]})

    def _redis_time(self) -> int:
        """Return the time by Redis's clock, microseconds. The ticks of one moment ask once. Raises redis.RedisError."""
        since, at = self._asked_time
        if time.monotonic() - since > _MOMENT_SECONDS:
            seconds, micros = cast("tuple[int, int]", self.client.time())
            since, at = self._asked_time = time.monotonic(), seconds * 1_000_000 + micros
        return at + int((time.monotonic() - since) * 1_000_000)

    def _lose(self, message: Message[Any], cadence: Every, error: redis.RedisError) -> None:
        """Note that a tick was not sent; its slot is tried again whenever the scheduler wakes, and counts once."""
        if not self._down:
            log.error("tick not sent, Redis is away", task=message.actor_name, error=reason(error))
        self._down = True
        slot = cadence.forget()
        if self._lost_slots.get(message.actor_name) != slot:
            self._lost_slots[message.actor_name] = slot
            self._lost[message.actor_name] += 1
        self._down_until = time.monotonic() + PAUSE_SECONDS


class _EndWaits(Middleware):
    """Ends the consumers' waits when the worker shuts down."""

    def before_worker_shutdown(self, broker: Any, worker: Worker) -> None:
        del worker
        broker.end_waits()


#: Parts of Dramatiq's script, and what stands in their places.
_ADAPTED = (
    (  # a sign of life is given by looking, which is fetching and searching for messages of dead workers
        b"""redis.call("zadd", heartbeats, timestamp, worker_id)""",
        b"""if command == "look" then
    redis.call("zadd", heartbeats, timestamp, worker_id)
    command = "fetch"
end""",
    ),
    (  # one command for all messages; and whoever takes some is known, also to a Redis that has forgotten who is there
        b"""    local message_ids = {}
    for i=1,prefetch do
        local message_id = redis.call("lpop", queue_full_name)
        if not message_id then
            break
        end

        message_ids[i] = message_id
        redis.call("sadd", queue_acks, message_id)
    end

    if next(message_ids) ~= nil then
""",
        b"""    local message_ids = prefetch > 0 and redis.call("lpop", queue_full_name, prefetch) or {}

    if next(message_ids) ~= nil then
        redis.call("sadd", queue_acks, unpack(message_ids))
        redis.call("zadd", heartbeats, "NX", timestamp, worker_id)
""",
    ),
    (  # a look at the queues that there are, for KEYS
        b"""local ack_queues = redis.call("keys", dead_worker_acks .. "*")
        if not next(ack_queues) then""",
        'if redis.call("exists", {}) == 0 then'.format(
            ", ".join(
                f'dead_worker_acks .. ".{queue}"'
                for name in (SWEEP_QUEUE, SINK_QUEUE)
                for queue in (name, dq_name(name))
            )
        ).encode(),
    ),
)


def _adapted(script: bytes) -> bytes:
    for theirs, ours in _ADAPTED:
        assert script.count(theirs) == 1, "this is not the Dramatiq that the worker was made for"
        script = script.replace(theirs, ours)
    return script
