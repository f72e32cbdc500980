"""Which sweepers' locks are held at this moment; whose they are Redis does not know."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING

import redis

from app.storage.redis import connect
from app.sweeping.unlocking import Held, Unlocking

if TYPE_CHECKING:
    from app.storage.settings import RedisSettings

#: How long an answer of Redis is waited for.
_ANSWER_WITHIN = timedelta(seconds=2)


def live_locks(settings: RedisSettings, names: Iterable[str]) -> dict[str, Held] | None:
    """Return the locks that are held, by their sweepers' names; None when Redis does not tell."""
    try:
        with connect(settings, answer_within=_ANSWER_WITHIN) as client:
            unlocking = Unlocking(client, settings.namespace)
            locks = {name: unlocking.look(name) for name in names}
    except redis.RedisError:
        return None
    return {name: lock for name, lock in locks.items() if lock is not None}
