"""What is due and not swept, of each sweeper: each counted by itself, so that a slow or locked table costs no other."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg

from app.overview.sources.parts import limited
from app.storage.postgres import only_row
from app.sweeping.scans.due import Backlog
from app.sweeping.scans.tables import INDEXED, LARGE, PAGES, Index

if TYPE_CHECKING:
    from psycopg import Connection, Cursor

    from app.sweeping.sweeper import Sweeper
    from app.sweeping.unserved import Pair


def read(connection: Connection[Any], pairs: Sequence[Pair], each: timedelta, within: timedelta) -> dict[str, Backlog]:
    """Return the backlogs that can be counted in time: `each` in so much, all of them `within` so much."""
    ends = time.monotonic() + within.total_seconds()
    found: dict[str, Backlog] = {}
    for sweeper, settings in pairs:
        due = sweeper.backlog(settings)
        left = timedelta(seconds=ends - time.monotonic())
        if due is None or left <= timedelta(0) or connection.closed:
            continue
        try:
            with limited(connection, min(each, left)) as cursor:
                backlog = due.count(cursor)
        except psycopg.Error:  # the table is not there, not ours to read, locked, or large
            continue
        if backlog is not None:
            found[sweeper.name] = backlog
    return found


def runs_a_pass(connection: Connection[Any], sweepers: Sequence[Sweeper[Any]], most_pages: int) -> dict[str, int]:
    """Return how many runs it takes until everything was looked at, where that is known and more than one."""
    found: dict[str, int] = {}
    for sweeper in sweepers:
        if sweeper.index is None or connection.closed:
            continue
        with suppress(psycopg.Error), limited(connection) as cursor:
            pages = int(only_row(cursor.execute(PAGES, {"table": sweeper.index.table}))["pages"])
            indexed = pages <= max(most_pages, LARGE) or _is_indexed(cursor, sweeper.index)
            found |= {} if indexed else {sweeper.name: math.ceil(pages / most_pages)}
    return found


def _is_indexed(cursor: Cursor[dict[str, Any]], index: Index) -> bool:
    return bool(only_row(cursor.execute(INDEXED, index._asdict()))["indexed"])
