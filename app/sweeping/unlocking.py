"""A lock that nobody gives back, by hand: what it is, who seems to hold it, and its end before its time.

Nothing runs twice by that: a run whose lock is gone is told so by its next renewal, and whatever it still tries to
commit once another run has begun is refused by the fence.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from app.storage.transaction import bounded
from app.sweeping.lock import lock_key

if TYPE_CHECKING:
    import redis
    from psycopg import Connection

# A key of any type and value is a lock that is held, to who wants to take it: an empty one, or a hash, as well.
_READ: LiteralString = """
local value, kind = redis.pcall('GET', KEYS[1]), 'string'
if type(value) == 'table' then
  if not string.find(value.err, 'WRONGTYPE', 1, true) then return value end
  local known = redis.pcall('TYPE', KEYS[1])
  value, kind = '', known.ok or 'key of another type'
end
"""
# A user who may not ask for a key's time sees the lock without it.
_LOOK = f"""{_READ}
if not value then return {{'', '', -2}} end
local left = redis.pcall('PTTL', KEYS[1])
return {{kind, value, type(left) == 'number' and left or -3}}
"""
_DELETE = f"""{_READ}
if value ~= ARGV[1] or kind ~= ARGV[2] then return 0 end
return redis.call('DEL', KEYS[1])
"""
RUNNING = """
SELECT worker, requested_by, started_at, now() - started_at AS age FROM secrets_bridge_worker.sweep_run
 WHERE name = %(name)s AND outcome = 'running' ORDER BY id DESC LIMIT 1
"""


class Held(NamedTuple):
    """A lock that is held."""

    token: bytes
    #: How long it lives if nobody renews it; None where that is not known, or without an end.
    left: timedelta | None
    #: What Redis calls it; ours are strings. The token of another type is empty.
    kind: str = "string"
    #: Whether it is known to have no end.
    endless: bool = False

    @property
    def shown(self) -> str:
        """The first eight characters of the token: enough to tell two locks apart, too few to act as the holder."""
        return "".join(character for character in self.token[:8].decode("ascii", "replace") if character.isalnum())


class Holder(NamedTuple):
    """A run that has not come to its end, as far as the ledger knows: the one that holds the lock, or was killed."""

    worker: str
    requested_by: str | None
    started_at: datetime
    age: timedelta


class Unlocking:
    """Locks of sweepers in one Redis."""

    def __init__(self, client: redis.Redis, namespace: str) -> None:
        self._namespace = namespace
        self._look = client.register_script(_LOOK)
        self._delete = client.register_script(_DELETE)

    def look(self, name: str) -> Held | None:
        """Return a sweeper's lock; None while it is free. Raises redis.RedisError."""
        kind, token, left = self._look(keys=[lock_key(self._namespace, name)])
        token = token if isinstance(token, bytes) else str(token).encode()
        kind = kind.decode() if isinstance(kind, bytes) else str(kind)
        return Held(token, timedelta(milliseconds=left) if left >= 0 else None, kind, left == -1) if kind else None

    def delete(self, name: str, held: Held) -> bool:
        """Delete the lock if it is this one still; return whether it was. Raises redis.RedisError."""
        return bool(self._delete(keys=[lock_key(self._namespace, name)], args=[held.token, held.kind]))


def holder(connection: Connection[Any], name: str) -> Holder | None:
    """Return the run that the ledger has as running."""
    with bounded(connection) as cursor:
        row = cursor.execute(RUNNING, {"name": name}).fetchone()
    return Holder(**row) if row else None
