"""Whether Redis takes this process's commands: told once when it ends and once when it is back."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import redis
import structlog

from app.storage.redis_reasons import reason

if TYPE_CHECKING:
    from collections.abc import Hashable

log = structlog.get_logger("broker")


class Outage:
    """The queues that Redis is failing, of all that a process serves."""

    def __init__(self) -> None:
        self._failing: dict[Hashable, redis.RedisError] = {}
        self._lock = threading.Lock()

    @property
    def error(self) -> redis.RedisError | None:
        """The first error of the outage that goes on now."""
        with self._lock:
            return next(iter(self._failing.values()), None)

    def failed(self, queue: Hashable, error: redis.RedisError) -> None:
        """Take note of an error that a queue met."""
        with self._lock:
            begins = not self._failing
            self._failing.setdefault(queue, error)
        if begins:
            word = reason(error)
            away = word == type(error).__name__ and isinstance(error, redis.ConnectionError)
            log.error("Redis is away; waiting" if away else "Redis refuses our commands; waiting", error=word)

    def fine(self, queue: Hashable) -> None:
        """Take note that a queue was served."""
        if not self._failing:  # the usual case, a hundred times a second
            return
        with self._lock:
            ends = self._failing.pop(queue, None) is not None and not self._failing
        if ends:
            log.info("Redis is back")
