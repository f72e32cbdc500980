"""Clocks of PostgreSQL and Redis that stand still until they are moved; what asks them is the real SQL and Lua.

A schema before pg_catalog in the search path has functions of the names by which statements ask for the time. As in
PostgreSQL, a transaction has one time: that of its first question. In a script of Redis `redis.call('TIME')` answers
with a key.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import redis as redis_py
from psycopg import Connection, sql

#: The time that the model calls 0: the start of a slot.
ZERO = datetime.fromtimestamp(1_800_000_000, UTC)
#: What a connection is to be made with, to have the clock that can be moved.
OPTIONS = "-c search_path=moved,pg_catalog,public"

_KEY = "the-clock"
_MOVED = """
CREATE SCHEMA moved;
CREATE TABLE moved.clock (at timestamptz NOT NULL);
INSERT INTO moved.clock VALUES ('epoch');
CREATE FUNCTION moved.now() RETURNS timestamptz LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF coalesce(current_setting('moved.now', true), '') = '' THEN
        PERFORM set_config('moved.now', (SELECT at FROM moved.clock)::text, true);
    END IF;
    RETURN current_setting('moved.now')::timestamptz;
END $$;
CREATE FUNCTION moved.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT at FROM moved.clock';
ALTER TABLE secrets_bridge_worker.sweeper_pause ALTER began_at SET DEFAULT moved.now();
"""
_LUA = f"""
local redis = setmetatable({{call = function(command, ...)
  if command ~= 'TIME' then return redis.call(command, ...) end
  local at = redis.call('GET', '{_KEY}')
  return {{string.sub(at, 1, -7), string.sub(at, -6)}}
end}}, {{__index = redis}})
"""


class ClockedRedis(redis_py.Redis):
    """A client whose scripts ask a key for the time."""

    def register_script(self, script: Any) -> Any:
        return super().register_script(_LUA + script)


class Clocks:
    """Both clocks."""

    def __init__(self, connection: Connection[Any], client: redis_py.Redis) -> None:
        self._connection = connection
        self._client = client
        self._time = 0
        connection.execute(_MOVED.encode())

    def set(self, time: int, ahead: int = 0) -> None:
        """Have Redis's clock show this time, microseconds after zero, and PostgreSQL's one that is so far ahead."""
        self._time = time
        at = ZERO + timedelta(microseconds=time + ahead)
        self._connection.execute(sql.SQL("UPDATE moved.clock SET at = {}").format(at))
        self.remind()

    def remind(self) -> None:
        """Tell Redis the time anew, once it has forgotten all."""
        self._client.set(_KEY, 1_800_000_000_000_000 + self._time)


def since_zero(moment: datetime | None) -> int | None:
    """Return the microseconds from zero to a moment of the database; None for the epoch, which means never."""
    if moment is None or moment.timestamp() == 0:
        return None
    return (moment - ZERO) // timedelta(microseconds=1)


def slot(time: int) -> int:
    """Return what the code calls a moment: microseconds since the epoch."""
    return 1_800_000_000_000_000 + time
