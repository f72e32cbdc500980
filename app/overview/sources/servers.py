"""What PostgreSQL says of itself: its version, and whether it takes writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.overview.model import ServerView
from app.storage.postgres import only_row

if TYPE_CHECKING:
    from psycopg import Cursor

_READ = """
SELECT current_setting('server_version_num')::int AS version, pg_is_in_recovery() AS standby,
       current_setting('transaction_read_only')::boolean AS read_only
"""


def read(cursor: Cursor[dict[str, Any]]) -> ServerView:
    """Return what is known of PostgreSQL, which answers."""
    row = only_row(cursor.execute(_READ))
    version = f"{row['version'] // 10_000}.{row['version'] % 10_000}"
    if row["standby"]:
        return ServerView("postgres", "read_only", version, "a standby, which takes no writes")
    if row["read_only"]:
        return ServerView(
            "postgres", "read_only", version, "takes no writes: the server, database or role is read-only"
        )
    return ServerView("postgres", "", version)


def unreachable(detail: str) -> ServerView:
    """Return PostgreSQL as it is while it cannot be reached, for this reason in words of ours."""
    return ServerView("postgres", "unreachable", "", detail)
