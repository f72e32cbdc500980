"""Redis clients with bounded waits, and one kind of error when Redis does not answer."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

if TYPE_CHECKING:
    from app.storage.settings import RedisSettings


class Client(redis.Redis):
    """A client whose time-outs are connection errors, the only ones that Dramatiq survives."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Execute a command. Raises redis.ConnectionError when there is no answer, a time-out included."""
        try:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except redis.TimeoutError:
            raise redis.ConnectionError("Redis did not answer in time") from None


def connect(settings: RedisSettings, *, answer_within: timedelta) -> Client:
    """Return a client; nothing is sent before its first use. Every call ends within `answer_within`, or nearly.

    A dead connection is replaced at once and the call is made again, once; any further retry is the caller's.
    """
    seconds = answer_within.total_seconds()
    dial = min(settings.dial_timeout, answer_within).total_seconds()
    return Client(
        connection_pool=settings.url.pool(
            socket_timeout=seconds,
            socket_connect_timeout=dial,
            retry=Retry(NoBackoff(), 1),
            max_connections=settings.pool_size,
        )
    )
