"""Pauses: for how long a sweeper begins no run, by whose order, and why.

A pause is judged by PostgreSQL, in the statement that claims a slot: so it holds for all replicas from its commit on,
by one clock, and a run that has begun goes on. It ends by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from app.storage.transaction import bounded

if TYPE_CHECKING:
    from psycopg import Connection

#: The longest pause.
LONGEST = timedelta(days=30)
#: Characters of a reason, which stands in tables and on one line.
MOST_REASON = 200

# Whether a row of sweeper_pause was made while the clock was ahead: it holds for nobody, now or when its time comes. A
# minute, since who asks may have begun a transaction before the one that made it.
AHEAD: LiteralString = "began_at > now() + interval '1 min'"
# Whether one holds now.
HOLDS: LiteralString = f"""
(resumed_at IS NULL AND until > now() AND NOT {AHEAD} AND until <= now() + interval '30 days 1 min')
"""

# Every one that is open, whatever its times: a clock that jumps may bring it back. What was over has ended by itself.
END = """
UPDATE secrets_bridge_worker.sweeper_pause
   SET resumed_at = least(until, clock_timestamp()), resumed_by = CASE WHEN until > now() THEN %(who)s END
 WHERE name = ANY (%(names)s) AND resumed_at IS NULL
RETURNING name, until > now() AS lay_ahead
"""
BEGIN = """
INSERT INTO secrets_bridge_worker.sweeper_pause (name, until, paused_by, reason)
SELECT name, now() + %(length)s, %(who)s, %(reason)s FROM unnest(%(names)s::text[]) AS name
RETURNING name, began_at, until, paused_by, reason
"""
CURRENT = f"""
SELECT DISTINCT ON (name) name, began_at, until, paused_by, reason FROM secrets_bridge_worker.sweeper_pause
 WHERE {HOLDS} ORDER BY name, until DESC
"""  # noqa: S608 - all its parts are literals
# Two who pause at once wait for each other, and the later one replaces. No lock of the table: runs would wait for it.
ALONE = "SELECT pg_advisory_xact_lock(hashtextextended('secrets_bridge_worker.sweeper_pause', 0))"


class Pause(NamedTuple):
    """A pause that holds; times aware."""

    name: str
    began_at: datetime
    until: datetime
    paused_by: str
    reason: str


def pause(connection: Connection[Any], names: Sequence[str], length: timedelta, who: str, reason: str) -> list[Pause]:
    """Pause these sweepers from now on, in place of pauses that hold; return the new ones."""
    with bounded(connection) as cursor:
        cursor.execute(ALONE)
        cursor.execute(END, {"names": list(names), "who": who})
        rows = cursor.execute(BEGIN, {"names": list(names), "length": length, "who": who, "reason": reason}).fetchall()
    return [Pause(**row) for row in rows]


def resume(connection: Connection[Any], names: Sequence[str], who: str) -> list[str]:
    """End the pauses of these sweepers; return the names of those that were paused, or would have been later."""
    with bounded(connection) as cursor:
        cursor.execute(ALONE)
        rows = cursor.execute(END, {"names": list(names), "who": who}).fetchall()
    return list(dict.fromkeys(row["name"] for row in rows if row["lay_ahead"]))


def current(connection: Connection[Any]) -> dict[str, Pause]:
    """Return the pauses that hold now, by the sweeper's name."""
    with bounded(connection) as cursor:
        return {row["name"]: Pause(**row) for row in cursor.execute(CURRENT)}
