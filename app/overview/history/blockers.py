"""Who is in a sweep's way in PostgreSQL at this moment: by process id, state and age, by no word of a stranger's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

if TYPE_CHECKING:
    from psycopg import Cursor

#: The tables of ours that each run writes to.
OWN_TABLES = ("secrets_bridge_worker.sweep_state", "secrets_bridge_worker.sweep_run")
#: Sessions that are shown at most.
_MOST = 10

# Three kinds: whoever a session of our role waits for; who holds a table against all writers; and who has written to it
# in a transaction that has been open for a while, since the locks of single rows are not to be seen from outside. What
# application_name and role are is compared here, and never leaves the server.
_BLOCKERS: LiteralString = """
WITH swept AS (
    SELECT to_regclass(name) AS oid, name FROM unnest(%(tables)s::text[]) AS name WHERE to_regclass(name) IS NOT NULL
), held AS (
    SELECT DISTINCT ON (pid, oid) pid, swept.name,
           mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock') AS strong,
           false AS seen
      FROM pg_locks JOIN swept ON relation = swept.oid
     WHERE locktype = 'relation' AND granted AND mode NOT IN ('AccessShareLock', 'ShareUpdateExclusiveLock')
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
     ORDER BY pid, oid, strong DESC
), waiting AS (
    SELECT pid, coalesce(relation, (SELECT relation FROM pg_locks AS row
                                     WHERE row.pid = waiter.pid AND locktype = 'tuple' AND granted LIMIT 1)) AS relation
      FROM pg_locks AS waiter
     WHERE NOT granted AND pid IN (SELECT pid FROM pg_stat_activity
                                    WHERE usesysid = (SELECT oid FROM pg_roles WHERE rolname = current_user))
), blocking AS (
    SELECT blocker AS pid, swept.name, true AS strong, true AS seen
      FROM waiting JOIN swept ON relation = swept.oid, unnest(pg_blocking_pids(waiting.pid)) AS blocker
)
SELECT found.pid, name AS "table", bool_or(seen) AS seen, bool_or(strong) AS strong, activity.state,
       clock_timestamp() - activity.xact_start AS age,
       coalesce(activity.usesysid = (SELECT oid FROM pg_roles WHERE rolname = current_user)
                AND activity.application_name = current_setting('application_name'), false) AS ours
  FROM (SELECT * FROM held UNION ALL SELECT * FROM blocking) AS found
  LEFT JOIN pg_stat_activity AS activity ON activity.pid = found.pid
 WHERE found.pid <> pg_backend_pid()
 GROUP BY found.pid, name, activity.state, activity.xact_start, activity.usesysid, activity.application_name
HAVING bool_or(strong) OR clock_timestamp() - activity.xact_start > %(old)s
 ORDER BY bool_or(seen) DESC, bool_or(strong) DESC, age DESC NULLS LAST LIMIT %(most)s
"""


class Blocker(NamedTuple):
    """A session that a sweep waits for, or may wait for."""

    pid: int
    #: The table that it is about.
    table: str
    #: Whether a session of our role was seen to wait for it.
    seen: bool
    #: Whether it keeps all writers from the table; otherwise it may hold some of its rows.
    strong: bool
    #: What PostgreSQL calls its state, and for how long its transaction has been open; None: not for our role to see.
    state: str | None
    age: timedelta | None
    #: Whether it is a session of a worker's.
    ours: bool


def blockers(cursor: Cursor[dict[str, Any]], tables: Sequence[str], old: timedelta) -> list[Blocker]:
    """Return who is in the way of a sweep of these tables; an open transaction that wrote to them only if it is old."""
    names = [*(table.partition(".")[0] for table in tables), *OWN_TABLES]
    return [Blocker(**row) for row in cursor.execute(_BLOCKERS, {"tables": names, "old": old, "most": _MOST})]
