"""Connections to PostgreSQL, and the reason, without a server's text, when there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import Connection, Cursor
from psycopg_pool import ConnectionPool

from app.core.errors import BootError

if TYPE_CHECKING:
    from app.storage.settings import DatabaseSettings

Row = TypeVar("Row")

#: Seconds to wait for a connection: a run that cannot have one soon fails and is retried.
CONNECT_SECONDS = 2
#: Connections of one process at most, when neither a setting nor the URL bounds them.
DEFAULT_CONNECTIONS = 10
#: PostgreSQL 14 is the first with the range scans that the sweeps use.
OLDEST_SERVER = 140_000

# libpq has the reason for a failed connection in a text only, which also names hosts, users and databases. So the text
# is matched, never shown.
_REASONS = (
    ("password authentication failed", "the password is wrong"),
    ("no password supplied", "a password is needed"),
    ("no pg_hba.conf entry", "the server's pg_hba.conf does not let this client in"),
    ("does not exist", "the database or the role does not exist"),
    ("too many", "the server has no connection left"),
    ("starting up", "the server is starting up"),
    ("shutting down", "the server is shutting down"),
    ("certificate", "the server's certificate is not trusted"),
    ("server does not support SSL", "the server does not speak TLS"),
    ("could not translate host name", "the host name is not known"),
    ("resolve host", "the host name is not known"),
    ("No such file or directory", "there is no server at that socket"),
    ("timeout", "no answer in time"),
    ("refused", "the connection is refused"),
)


def pool(settings: DatabaseSettings) -> ConnectionPool[Connection[Any]]:
    """Return a pool that is not open yet: open it after the fork. It keeps no connection that nobody uses.

    Each connection is checked when it is lent, so that a server that was restarted costs no run.
    """
    most = settings.max_connections or settings.url.max_connections or DEFAULT_CONNECTIONS
    lifetime = settings.connection_lifetime.total_seconds()
    arguments: dict[str, Any] = {"autocommit": True, "connect_timeout": CONNECT_SECONDS}
    if not settings.url.prepare:  # behind a pooler that shares sessions
        arguments["prepare_threshold"] = None
    return ConnectionPool(
        settings.url.conninfo,
        kwargs=arguments,
        min_size=0,
        max_size=most,
        timeout=CONNECT_SECONDS + 1,
        max_lifetime=lifetime,
        max_idle=60,
        reconnect_timeout=CONNECT_SECONDS,
        check=ConnectionPool.check_connection,
        num_workers=1,
        open=False,
        name="secrets-bridge-worker",
    )


def connect(settings: DatabaseSettings) -> Connection[Any]:
    """Connect once, outside of any pool. Raises BootError with the reason when there is no connection."""
    try:
        return psycopg.connect(settings.url.conninfo, autocommit=True, connect_timeout=CONNECT_SECONDS)
    except psycopg.Error as error:
        raise BootError(f"DATABASE_URL: PostgreSQL cannot be reached: {_reason(error)}") from None


def ping(connections: ConnectionPool[Connection[Any]]) -> None:
    """Do nothing when the server answers within a second; raises psycopg.Error or PoolTimeout when it does not."""
    with connections.connection(timeout=1) as connection:
        connection.execute("SELECT 1")


def only_row(cursor: Cursor[Row]) -> Row:
    """Return the row of a statement that always has one. Raises RuntimeError when it has none."""
    row = cursor.fetchone()
    if row is None:
        raise RuntimeError("no row")
    return row


def _reason(error: psycopg.Error) -> str:
    text = str(error)
    return next((reason for sign, reason in _REASONS if sign in text), "see the server's log")
