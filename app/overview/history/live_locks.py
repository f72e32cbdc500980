"""Which sweepers' locks are held at this moment; whose they are Redis does not know."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import redis
from redis.exceptions import NoPermissionError

from app.storage.redis import connect
from app.sweeping.lock import lock_key

if TYPE_CHECKING:
    from app.storage.settings import RedisSettings

#: How long an answer of Redis is waited for.
_ANSWER_WITHIN = timedelta(seconds=2)


class LiveLock(NamedTuple):
    """A lock that is held, and when it runs out unless it is renewed; None where we may not ask that."""

    expires_in: timedelta | None


def live_locks(settings: RedisSettings, names: Iterable[str]) -> dict[str, LiveLock] | None:
    """Return the locks that are held, by their sweepers' names; None when Redis does not tell."""
    try:
        with connect(settings, answer_within=_ANSWER_WITHIN) as client:
            locks = {name: _lock(client, lock_key(settings.namespace, name)) for name in names}
    except redis.RedisError:
        return None
    return {name: lock for name, lock in locks.items() if lock is not None}


def _lock(client: redis.Redis, key: str) -> LiveLock | None:
    if client.get(key) is None:
        return None
    try:
        left: Any = client.pttl(key)
    except NoPermissionError:  # no worker needs to ask that
        return LiveLock(None)
    return LiveLock(timedelta(milliseconds=left)) if left >= 0 else LiveLock(None)
