"""Redis clients with bounded waits, which leave a server that is no longer the one to talk to."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.core.errors import BootError
from app.storage.redis_connection import time_limit
from app.storage.redis_reasons import LEAVE, reason

if TYPE_CHECKING:
    from app.storage.redis_connection import Pool
    from app.storage.settings import RedisSettings

#: Seconds that dialling may take, where neither a setting nor the URL bounds it.
DIAL_SECONDS = 5.0


class Client(redis.Redis):
    """A client each call of which ends within `answer_within`, looking up, dialling and waiting for others included.

    A call that meets a dead connection, or a server to leave, is made once more on a new one, to where the URL leads
    by then; any further retry is the caller's. Time-outs are redis.ConnectionErrors.
    """

    _again = True

    def __init__(self, settings: RedisSettings, answer_within: timedelta, connections: int) -> None:
        self._settings = settings
        self._connections = connections
        self._within = answer_within.total_seconds()
        self._url = settings.url
        self._leaving = threading.Lock()
        super().__init__(connection_pool=self._pool())
        self.auto_close_connection_pool = True  # it is this client's alone

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Execute a command. Raises redis.ConnectionError when there is no answer in time."""
        with time_limit(self._within):
            try:
                return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
            except redis.TimeoutError:
                self.leave()
                raise redis.ConnectionError("Redis did not answer in time") from None
            except redis.RedisError as error:
                leaves = isinstance(error, redis.ConnectionError) or reason(error) in LEAVE
                if leaves:
                    self.leave()
                if not leaves or not self._again:
                    raise
            try:
                return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
            except redis.TimeoutError:
                raise redis.ConnectionError("Redis did not answer in time") from None

    def leave(self) -> None:
        """Have the next calls dial anew, and by the URL as it stands now."""
        with self._leaving:
            pool = cast("Pool", self.connection_pool)
            if (url := self._settings.current_url()) != self._url:
                self._url = url
                self.connection_pool = self._pool()
        pool.drop_idle()

    def _pool(self) -> Pool:
        within = min(self._within, self._url.arguments.get("socket_timeout", self._within))
        dial = self._settings.dial_timeout or timedelta(seconds=self._url.dial_timeout or DIAL_SECONDS)
        return self._url.pool(
            max_connections=self._connections,
            timeout=within / 2,
            socket_timeout=within,
            socket_connect_timeout=min(dial.total_seconds(), within),
            protocol=2,  # the other one needs HELLO, which proxies lack, and has nothing that is used here
            driver_info=None,  # no CLIENT SETINFO, which older servers do not know
            retry=Retry(NoBackoff(), 0),
        )


class WaitingClient(Client):
    """A client whose calls wait for something to happen, each on a connection of its own.

    A call that fails is not made again: it would wait anew, beyond its time.
    """

    _again = False

    @property
    def longest_wait(self) -> float:
        """Seconds that a command may have the server wait, so that its answer is still in time."""
        timeout: float = self.connection_pool.connection_kwargs["socket_timeout"]
        return timeout * 2 / 3

    def end_waits(self) -> None:
        """Have the calls that wait now fail at once, from any thread."""
        cast("Pool", self.connection_pool).shut()


def connect(settings: RedisSettings, *, answer_within: timedelta) -> Client:
    """Return a client; nothing is sent before its first use."""
    return Client(settings, answer_within, settings.connections)


def shards(client: redis.Redis) -> int:
    """Return how many shards the server's cluster has; 0 when it is in none. Raises redis.RedisError."""
    try:
        hello: Any = client.execute_command("HELLO")  # type: ignore[no-untyped-call]
    except redis.ResponseError:  # proxies do not know it
        return 0
    pairs = hello if isinstance(hello, dict) else dict(zip(hello[::2], hello[1::2], strict=True))
    if pairs.get(b"mode", pairs.get("mode")) not in (b"cluster", "cluster"):
        return 0
    try:
        info: Any = client.execute_command("CLUSTER INFO")  # type: ignore[no-untyped-call]
    except redis.ResponseError:
        return 1  # not told
    return max(int(info["cluster_size"]), 1)


def check_shards(client: redis.Redis) -> int:
    """Return the number of shards. Raises BootError when they are several, and redis.RedisError."""
    if (number := shards(client)) > 1:
        raise BootError(
            f"REDIS_URL: a Redis Cluster of {number} shards; accepted: a server of its own, or a cluster of one shard"
        )
    return number


def queue_prefix(client: redis.Redis, namespace: str) -> str:
    """Return the prefix of Dramatiq's keys, which its scripts use together. Raises redis.RedisError.

    In a cluster it stands in braces, so that all keys are in one slot. All replicas ask the same server and agree.
    """
    return f"{{{namespace}}}" if shards(client) else namespace
