"""A transaction of a run: what it may take, how it begins, and statements that are sent together."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from psycopg.rows import dict_row

from app.core.errors import NotDue, Reason
from app.storage.postgres import only_row
from app.sweeping.scans.tables import PAGES_OF_SWEPT, is_there

if TYPE_CHECKING:
    from psycopg import Connection, Cursor


# All limits are shorter than the lease: a statement, a wait or a pause that outlives the lock must end first. They come
# before all else: even to ask how large a table is waits for who has locked it. Tables are gone through by their pages
# or an index, whatever the statistics say, and in their order. Between a run's first commit and its last nothing waits
# for the disk: should the server crash, what it forgets is the end of the run, rows and counts alike, and those rows
# are swept again.
LIMIT = """
SELECT set_config('statement_timeout', %(statement)s, true),
       set_config('lock_timeout', %(lock)s, true),
       set_config('idle_in_transaction_session_timeout', %(idle)s, true),
       CASE WHEN current_setting('server_version_num')::int >= 170000
            THEN set_config('transaction_timeout', %(transaction)s, true) END,
       set_config('enable_seqscan', 'off', true),
       set_config('synchronize_seqscans', 'off', true),
       set_config('max_parallel_workers_per_gather', '0', true),
       CASE WHEN NOT %(durable)s THEN set_config('synchronous_commit', 'off', true) END
"""

PRESENT = is_there("%(relation)s")
BEGIN = f"""
SELECT now() AS now,{PRESENT} AS present,
       CASE swept.relkind WHEN 'p' THEN (SELECT count(*) FROM pg_partition_tree(swept.oid) WHERE isleaf)
            ELSE 1 END AS partitions,
{PAGES_OF_SWEPT} AS pages,
       CASE WHEN relpages > 0 THEN greatest(reltuples, 0) / relpages ELSE 0 END::float8 AS rows_per_page
  FROM (SELECT to_regclass(%(table)s) AS oid) AS named
  LEFT JOIN pg_class AS swept USING (oid)
"""  # noqa: S608 - all its parts are literals
# How large a table is nobody learns while somebody holds it; that a run has failed for this must be written down.
LOOK = f"SELECT now() AS now, {PRESENT} AS present"


class Limits(NamedTuple):
    """What a transaction may take before PostgreSQL ends it, milliseconds as texts."""

    statement: str
    lock: str
    idle: str
    #: The whole of it, which counts where the others do not: while a client that has fallen silent had more to send.
    transaction: str

    @classmethod
    def below(cls, lease: timedelta) -> Limits:
        """Derive the limits from the lease: a third, a sixth and a quarter of it, and all of it."""
        ms = lease // timedelta(milliseconds=1)
        return cls(str(ms // 3), str(ms // 6), str(max(500, ms // 4)), str(ms))


class Begun(NamedTuple):
    """The time of a transaction, and how large the swept table is."""

    now: datetime
    #: How many pages it has, or the largest of its partitions, and how many of those there are.
    pages: int
    partitions: int
    #: How many rows lie on a page, by the statistics; 0 when there are none.
    rows_per_page: float


class Answers:
    """What was sent together: cursors whose answers are read once they are there."""

    def __init__(self, *cursors: Cursor[dict[str, Any]]) -> None:
        self.cursors = cursors

    @property
    def arrived(self) -> bool:
        """Whether none of them has failed, or was not executed since one before has."""
        return all(cursor.statusmessage for cursor in self.cursors)


def send(connection: Connection[Any], query: LiteralString, **parameters: object) -> Cursor[dict[str, Any]]:
    """Send a statement; its rows are dicts, and in a pipeline they are there once they are asked for."""
    return connection.cursor(row_factory=dict_row).execute(query, parameters)


def begin(
    connection: Connection[Any], relation: str, table: str, limits: Limits, *, durable: bool = True
) -> Cursor[dict[str, Any]]:
    """Set a transaction's limits and look for the api's `relation`: a table, or `table.column`."""
    connection.execute(LIMIT, {"durable": durable, **limits._asdict()})
    return send(connection, BEGIN, relation=relation, table=table)


def begun(cursor: Cursor[dict[str, Any]]) -> Begun:
    """Read the answer to `begin`. Raises NotDue when the relation is missing."""
    row = only_row(cursor)
    if not row["present"]:
        raise NotDue(Reason.TABLE_MISSING)
    return Begun(row["now"], row["pages"] or 0, row["partitions"] or 1, row["rows_per_page"] or 0.0)


def look(cursor: Cursor[dict[str, Any]], relation: str, limits: Limits) -> datetime:
    """Set a transaction's limits and return when it began, whoever holds the api's table.

    Raises NotDue when the relation is missing.
    """
    cursor.execute(LIMIT, {"durable": True, **limits._asdict()})
    row = only_row(cursor.execute(LOOK, {"relation": relation}))
    if not row["present"]:
        raise NotDue(Reason.TABLE_MISSING)
    now: datetime = row["now"]
    return now
