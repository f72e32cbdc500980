"""The Redis lock of one target of discovery, which the api takes as well before it acts for an admin.

    <namespace>:lock:discover:<id of the provider connection>     a token, 32 hex digits, expiring after a minute

Whoever enqueues a job takes it first and leaves it to run out, so that within a minute the other one does not enqueue a
second job. Whether a job is under way the row of the connection knows, and nothing of it depends on this lock.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from datetime import timedelta

import redis
import structlog

from app.core.errors import describe
from app.sweeping.strategy import TargetLocks

log = structlog.get_logger("lease")

#: As long as the api's: an admin's wish is refused for this long after a job was enqueued.
TTL = timedelta(seconds=60)

_RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""


class RedisTargetLocks(TargetLocks):
    """The locks of one run."""

    def __init__(self, client: redis.Redis, namespace: str) -> None:
        self._client = client
        self._prefix = f"{namespace}:lock:discover:"
        self._token = secrets.token_hex(16)
        self._release = client.register_script(_RELEASE)

    def take(self, target: str) -> bool:
        """Take a target's lock; return whether it was free. Raises redis.RedisError."""
        key = self._prefix + target
        try:
            taken = self._client.set(key, self._token, nx=True, px=TTL)
        except redis.ConnectionError:
            taken = self._client.set(key, self._token, nx=True, px=TTL)
        # A call whose reply was lost is made again, by us or by the client, and finds what it has set itself.
        if taken or self._client.get(key) == self._token.encode():
            return True
        # Nobody takes it for longer: this one was made when the server's clock was ahead.
        if self._client.pttl(key) > TTL // timedelta(milliseconds=1):
            self._client.pexpire(key, TTL)
        return False

    def release(self, targets: Iterable[str]) -> None:
        """Give locks back that are still ours. Never raises: what a Redis that is away keeps expires by itself."""
        try:
            for target in targets:
                self._release(keys=[self._prefix + target], args=[self._token])
        except redis.RedisError as error:
            log.warning("locks of targets not released; they expire by themselves", error=describe(error).error)
