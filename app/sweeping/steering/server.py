"""Which PostgreSQL this is: its cluster's number, and its timeline, which is a new one after each promotion.

A backup that was restored has another of either. An ordinary role may ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import structlog

from app.core.errors import describe
from app.storage.postgres import only_row

if TYPE_CHECKING:
    from psycopg import Cursor

log = structlog.get_logger("sweep")

# The first eight digits of a segment's name are the timeline.
IDENTITY = """
SELECT system_identifier || ':' || left(pg_walfile_name(pg_current_wal_lsn()), 8) AS server FROM pg_control_system()
"""


def identity(cursor: Cursor[dict[str, Any]]) -> str | None:
    """Return what this server is known by, in an open transaction; None where it does not say."""
    try:
        with cursor.connection.transaction():
            server: str = only_row(cursor.execute(IDENTITY))["server"]
    except psycopg.DatabaseError as error:
        if cursor.connection.closed or isinstance(error, psycopg.errors.QueryCanceled):
            raise
        log.debug("the server does not say which one it is", **describe(error)._asdict())
        return None
    return server
