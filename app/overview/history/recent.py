"""The newest rows of the ledger."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, LiteralString

from app.overview.history.entry import COLUMNS, Entry

if TYPE_CHECKING:
    from psycopg import Cursor

_RECENT: LiteralString = f"""
SELECT {COLUMNS} FROM secrets_bridge_worker.sweep_run
 WHERE (%(name)s::text IS NULL OR name = %(name)s)
   AND (%(window)s::interval IS NULL OR started_at >= clock_timestamp() - %(window)s::interval)
   AND (NOT %(failed)s OR outcome IN ('failure', 'interrupted'))
 ORDER BY id DESC LIMIT %(most)s
"""  # noqa: S608 - a literal


def recent(
    cursor: Cursor[dict[str, Any]], name: str | None, *, window: timedelta | None, failed: bool, most: int
) -> list[Entry]:
    """Return rows, the newest first; of all sweepers without a name; `failed` are those that failed or were cut."""
    words = {"name": name, "window": window, "failed": failed, "most": most}
    return [Entry(**row) for row in cursor.execute(_RECENT, words)]
