"""Consumers that wait for messages in Redis, through its outages in place, and step around malformed messages.

Dramatiq's ask for messages again and again. Ours are woken by the server, and look by themselves every few seconds,
which is their sign of life. Dramatiq's end at the first error, drop the delayed messages that they hold, and come back
seconds later; at any other error than a lost connection an acknowledgement is given up. Here a consumer has no messages
while Redis fails it in any way, and what is to be acknowledged is, once Redis takes it.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections import deque
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import redis
import structlog
from dramatiq.broker import MessageProxy
from dramatiq.brokers.redis import _RedisConsumer
from dramatiq.common import current_millis, q_name

from app.core import metrics
from app.storage.redis_reasons import reason
from app.worker import messages
from app.worker.messages import Fault, Malformed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dramatiq import Message

    from app.worker.broker import Broker

log = structlog.get_logger("broker")

#: A consumer looks for messages this often though nothing wakes it, seconds, by which others know that it is alive.
LOOK_SECONDS = 5.0
#: Longest wait that a stop has to wait for, where Redis does not see it: for room, or for a worker that drains.
PAUSE_SECONDS = 0.1
#: Longest pause between two attempts in an outage, in seconds.
LONGEST_PAUSE = 1.0
#: Longest wait of a delayed message, Dramatiq's own limit: one that is to wait longer is due at once.
_LONGEST_DELAY_MS = timedelta(days=7) // timedelta(milliseconds=1)


class QueueConsumer(_RedisConsumer):
    """A consumer of a queue. It raises no redis.RedisError."""

    broker: Broker

    def __init__(self, broker: Broker, queue_name: str, prefetch: int, timeout: int) -> None:
        super().__init__(broker, queue_name, prefetch, timeout)  # type: ignore[no-untyped-call]
        #: What Redis has still to be told, as a command and a message's id in Redis; from any thread.
        self._untold: deque[tuple[str, str]] = deque()
        self._failures = 0
        #: When to look again, monotonic seconds.
        self._look_at = 0.0
        #: Set when a message has ended, which makes room for another.
        self._freed = threading.Event()

    def __next__(self) -> MessageProxy | None:
        try:
            self._tell()
            message = self._take()
        except redis.RedisError as error:
            self.broker.outage.failed(self.queue_name, error)
            self._look_at = 0.0
            time.sleep(min(PAUSE_SECONDS * 2**self._failures, LONGEST_PAUSE))
            self._failures = min(self._failures + 1, 10)
            return None
        return message

    def ack(self, message: MessageProxy) -> None:
        """Acknowledge a message, or do so as soon as Redis takes it."""
        self._end("ack", message)

    def nack(self, message: MessageProxy) -> None:
        """Put a message to the dead letters, or do so as soon as Redis takes it."""
        self._end("nack", message)

    def requeue(self, messages: Iterable[Any]) -> None:
        """Hand messages back; where Redis fails others find them, once this process counts as dead."""
        try:
            super().requeue(list(messages))  # type: ignore[no-untyped-call]
        except redis.RedisError as error:
            log.warning("messages not handed back; they are found later", error=reason(error))

    def close(self) -> None:
        """Tell Redis what it has still to be told, if it can be."""
        with suppress(redis.RedisError):
            self._tell()

    def _take(self) -> MessageProxy | None:
        message = self._read()
        if message is None:
            return None
        message.options.pop("eta", None)  # Dramatiq's thread would hold it back, and forget it at the next error
        return MessageProxy(message)

    def _read(self) -> Message[Any] | None:
        """Return the next message, after a wait None when there is none, and None for a malformed one."""
        if not self.message_cache and not self._fetch():
            return None
        body = self.message_cache[0]
        message: Message[Any] | None = None
        try:
            message = messages.read(body, self.queue_name, self.broker.actors)
            self.queued_message_ids.add(message.message_id)
        except Malformed as malformed:
            self._put_aside(body, malformed.fault)
        self.message_cache.pop(0)
        return message

    def _fetch(self) -> bool:
        """Fetch what there is room for, once there is something or it is time to look; return whether it was some."""
        self._freed.clear()
        room = 0 if self.broker.ending else max(self.prefetch - self.outstanding_message_count, 0)
        looks = time.monotonic() >= self._look_at
        if not looks and not self._woken(room):
            return False
        fetch = self.broker.do_look if looks else self.broker.do_fetch
        self.message_cache = fetch(self.queue_name, room)
        if looks:
            self._look_at = time.monotonic() + LOOK_SECONDS
        self._failures = 0
        self.broker.outage.fine(self.queue_name)
        return bool(self.message_cache)

    def _woken(self, room: int) -> bool:
        """Wait for a message, no longer than until something else is to be done; return whether there is one."""
        if room:
            return self.broker.wait(self.queue_name, self._patience)
        self._freed.wait(PAUSE_SECONDS)
        return False

    @property
    def _patience(self) -> float:
        """How long a wait for a message may last, seconds."""
        return self.broker.waiting.longest_wait

    def _put_aside(self, body: bytes | None, fault: Fault) -> None:
        """Make a malformed message a dead letter. What it says of itself is not trusted: it is found by its body."""
        command = "ack" if fault is Fault.MISSING else "nack"
        self._untold.extend((command, number) for number in self.broker.fetched(self.queue_name, body))
        self._tell()
        metrics.MESSAGES_MALFORMED.labels(q_name(self.queue_name), fault.value).inc()
        if fault is not Fault.MISSING:
            log.error("message put aside, it is malformed", queue=self.queue_name, fault=fault.value)

    def _end(self, command: str, message: MessageProxy) -> None:
        self.queued_message_ids.discard(message.message_id)
        self._freed.set()
        number = message.options["redis_message_id"]
        try:
            self._call(command, number)
        except redis.RedisError:
            self._untold.append((command, number))

    def _tell(self) -> None:
        while self._untold:
            self._call(*self._untold[0])
            self._untold.popleft()

    def _call(self, command: str, number: str) -> None:
        dispatch = getattr(self.broker, f"do_{command}")
        try:
            dispatch(self.queue_name, number)
        except redis.ResponseError as error:
            if command != "nack" or reason(error) != "NOPERM":
                raise
            self.broker.drop(self.queue_name, number)  # no dead letters for this user


class DelayConsumer(QueueConsumer):
    """A consumer of a delay queue, which holds messages until they are due and forwards them itself."""

    def __init__(self, broker: Broker, queue_name: str, prefetch: int, timeout: int) -> None:
        super().__init__(broker, queue_name, prefetch, timeout)
        self._held: list[tuple[int, int, MessageProxy]] = []
        self._count = 0

    def close(self) -> None:
        """Hand back what is held."""
        self.requeue(message for _, _, message in self._held)
        self._held.clear()
        super().close()

    @property
    def _patience(self) -> float:
        """No longer than until the first of those that it holds is due."""
        due = self._held[0][0] - current_millis() if self._held else math.inf
        return max(min(super()._patience, due / 1000), 0.0)

    def _take(self) -> None:
        message = self._read()
        if message is not None:
            proxy = MessageProxy(message)
            self.broker.emit_before("delay_message", proxy)
            self._count += 1
            heapq.heappush(self._held, (_due(message), self._count, proxy))
        while self._held and self._held[0][0] <= current_millis():
            held = self._held[0][2]
            due = cast("Message[Any]", held.copy(queue_name=q_name(self.queue_name)))
            due.options.pop("eta", None)
            self.broker.forward(due)
            heapq.heappop(self._held)
            self.ack(held)


def _due(message: Message[Any]) -> int:
    """Return when a message is due, in milliseconds since the epoch; now when it does not say so sensibly."""
    now = current_millis()
    due = message.options.get("eta", now)
    return int(due) if due <= now + _LONGEST_DELAY_MS else now
