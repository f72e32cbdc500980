"""The Redis lock of one target of discovery, which the api takes as well before it acts for an admin.

    <namespace>:lock:discover:<id of the provider connection>     a token, 32 hex digits, expiring after a minute

Whoever enqueues a job takes it first and leaves it to run out, so that within a minute the other one does not enqueue a
second job. Whether a job is under way the row of the connection knows, and nothing of it depends on this lock.
"""

from __future__ import annotations

import secrets
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
            return bool(self._client.set(key, self._token, nx=True, px=TTL))
        except redis.ConnectionError:  # the reply may be lost, not the call: it may be ours by now
            taken = self._client.set(key, self._token, nx=True, px=TTL)
            return bool(taken) or self._client.get(key) == self._token.encode()

    def release(self, target: str) -> None:
        """Give a lock back if it is still ours. Never raises: the lock expires by itself."""
        try:
            self._release(keys=[self._prefix + target], args=[self._token])
        except redis.RedisError as error:
            log.warning("target's lock not released; it expires by itself", error=describe(error).error)
