"""Who keeps sweeps from their tables, now: sessions that hold, or wait for, a lock that a sweep's excludes.

Of a session its pid, its state and the age of its transaction are told, as far as our role may see them; never its
statement, nor the name that it gives itself: these are a stranger's texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, LiteralString

from app.overview.model import Blocker

if TYPE_CHECKING:
    from psycopg import Cursor

#: Sessions that are told of at most, and how old a transaction is at least that is worth it, where that is known.
_MOST, LEAST = 20, timedelta(seconds=1)

# A sweep's statements take a table by RowShareLock and RowExclusiveLock, which these do not let in; one that only waits
# keeps out whoever comes after it. Rows are waited for where one of our role's sessions waits for a transaction. No
# table is opened for this, so that nothing here waits. The state and age of other roles' sessions are NULL to us.
_READ: LiteralString = """
WITH blocking AS (
    SELECT pid, relation FROM pg_locks
     WHERE locktype = 'relation' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND relation IN (SELECT to_regclass(name) FROM unnest(%(tables)s::text[]) AS name)
       AND mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
     UNION
    SELECT blocker, waits.relation
      FROM pg_locks AS waits
      JOIN pg_stat_activity AS waiting ON waiting.pid = waits.pid AND waiting.usesysid = current_user::regrole
     CROSS JOIN LATERAL unnest(pg_blocking_pids(waits.pid)) AS blocker
     WHERE NOT waits.granted AND waiting.datname = current_database()
)
SELECT DISTINCT ON (coalesce(blocking.pid, 0)) coalesce(blocking.pid, 0) AS pid,
       coalesce((SELECT relname FROM pg_class WHERE oid = relation), '') AS table,
       coalesce(session.state, '') AS state, clock_timestamp() - session.xact_start AS age,
       coalesce(session.usesysid = current_user::regrole, false) AS own_role
  FROM blocking LEFT JOIN pg_stat_activity AS session ON session.pid = blocking.pid
 WHERE blocking.pid IS DISTINCT FROM pg_backend_pid()
 ORDER BY coalesce(blocking.pid, 0), relation NULLS LAST
 LIMIT %(most)s
"""


def read(cursor: Cursor[dict[str, Any]], tables: Sequence[str], least: timedelta = LEAST) -> list[Blocker]:
    """Return who keeps the sweeps of our role from these tables, or from rows, and is not done in a moment."""
    rows = cursor.execute(_READ, {"tables": list(tables), "most": _MOST}).fetchall()
    return [blocker for row in rows if (blocker := Blocker(**row)).age is None or blocker.age >= least]
