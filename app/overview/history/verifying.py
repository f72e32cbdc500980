"""Reads the ledger for the checkers: in the order of claims, some rows at a time, all in one moment's view of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from psycopg.rows import args_row

from app.fleet import processes
from app.fleet.signs_of_life import KEPT
from app.overview.history.cadences import Cadences
from app.overview.history.checker import Checker, Rules
from app.overview.history.entry import COLUMNS, Entry
from app.overview.history.findings import Findings
from app.storage.postgres import only_row
from app.sweeping.steering.pauses import HOLDS

if TYPE_CHECKING:
    from psycopg import Cursor

#: Rows that are in memory at a time.
AT_ONCE = 2_000

_SWEEPERS: LiteralString = f"""
SELECT name, clock_timestamp() AS now, braked_for IS NOT NULL OR EXISTS (
       SELECT FROM secrets_bridge_worker.sweeper_pause AS pause WHERE pause.name = state.name AND {HOLDS}) AS stopped
  FROM secrets_bridge_worker.sweep_state AS state ORDER BY name
"""  # noqa: S608 - all its parts are literals
# What was claimed last before the window; a streak of failures may lie in between.
_BEFORE: LiteralString = f"""
SELECT {COLUMNS} FROM (
       SELECT {COLUMNS} FROM secrets_bridge_worker.sweep_run
        WHERE name = %(name)s AND started_at < %(since)s AND token IS NOT NULL ORDER BY started_at DESC LIMIT 50
       ) AS before ORDER BY id
"""  # noqa: S608 - a literal
# Rows were inserted in another order than their transactions began, where one waited, or where the clock jumped.
_FIRST: LiteralString = """
SELECT min(id) AS id FROM (
       SELECT id FROM secrets_bridge_worker.sweep_run
        WHERE name = %(name)s AND started_at >= %(since)s ORDER BY started_at LIMIT 1000) AS first
"""
_LAST: LiteralString = "SELECT coalesce(max(id), 0) AS id FROM secrets_bridge_worker.sweep_run"
_PAGE: LiteralString = f"""
SELECT {COLUMNS} FROM secrets_bridge_worker.sweep_run
 WHERE id > %(after)s AND id <= %(last)s ORDER BY id LIMIT %(most)s
"""  # noqa: S608 - a literal
_RUNNING: LiteralString = f"""
SELECT {COLUMNS} FROM secrets_bridge_worker.sweep_run WHERE outcome = 'running' AND name = %(name)s ORDER BY id
"""  # noqa: S608 - a literal


class Known(NamedTuple):
    """What the one who asks knows of a deployment, by settings and Redis."""

    #: How often sweepers are run, and which of them are on.
    cadences: Mapping[str, timedelta]
    enabled: Callable[[str], bool]
    lease: timedelta
    #: Whether a sweeper's lock is held; None: not known.
    held: Callable[[str], bool | None]


def verify(
    cursor: Cursor[dict[str, Any]],
    known: Known,
    window: timedelta,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> list[Findings]:
    """Check each sweeper's rows of this time; `progress` is called with how many rows of how many were read."""
    sweepers = cursor.execute(_SWEEPERS).fetchall()
    if not sweepers:
        return []
    now: datetime = sweepers[0]["now"]
    since = now - window
    cadences = Cadences(known.cadences, processes.read(cursor, KEPT * 2), now)
    # A claim waits for the fence, and before it perhaps for a lock of the swept table: a sixth of the lease each.
    rules = Rules(cadences, since, now, claim_waits=known.lease / 3, lease=known.lease)
    checkers = {row["name"]: Checker(row["name"], rules) for row in sweepers}
    _feed(cursor, checkers, since, progress)
    return [
        checkers[row["name"]].findings(
            enabled=known.enabled(row["name"]),
            running=_entries(cursor, _RUNNING, name=row["name"]),
            held=known.held(row["name"]),
            stopped=row["stopped"],
        )
        for row in sweepers
    ]


def _feed(
    cursor: Cursor[dict[str, Any]],
    checkers: Mapping[str, Checker],
    since: datetime,
    progress: Callable[[int, int], None],
) -> None:
    first = []
    for name, checker in checkers.items():
        for row in _entries(cursor, _BEFORE, name=name, since=since):
            checker.before(row)
        first += [row["id"] for row in cursor.execute(_FIRST, {"name": name, "since": since}) if row["id"]]
    last = only_row(cursor.execute(_LAST))["id"]
    begin = after = min(first, default=last + 1) - 1
    while page := _entries(cursor, _PAGE, after=after, last=last, most=AT_ONCE):
        for row in page:
            if row.started_at >= since and row.name in checkers:
                checkers[row.name].feed(row)
        after = page[-1].id
        progress(after - begin, last - begin)


def _entries(cursor: Cursor[dict[str, Any]], query: LiteralString, **words: object) -> list[Entry]:
    return cursor.connection.cursor(row_factory=args_row(Entry)).execute(query, words).fetchall()
