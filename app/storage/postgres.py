"""Connections to PostgreSQL, and the reason, without a server's text, when there is none."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psycopg
from psycopg import Connection, Cursor
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool

from app.core.errors import BootError
from app.storage.connection import ANSWER_WITHIN, BoundedConnection

if TYPE_CHECKING:
    from app.storage.settings import DatabaseSettings

Row = TypeVar("Row")

#: Seconds to wait for a connection: a run that cannot have one soon fails and is retried.
CONNECT_SECONDS = 2
#: Seconds in which a connection that is lent must answer; a silent one costs its borrower no more.
CHECK_SECONDS = 1.0
#: For so many seconds after an answer a connection counts as alive: a run borrows it anew for each transaction.
FRESH_SECONDS = 1.0
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


def pool(settings: DatabaseSettings, answer_within: timedelta = ANSWER_WITHIN) -> ConnectionPool[Connection[Any]]:
    """Return a pool that is not open yet: open it after the fork. It keeps no connection that nobody uses.

    No statement is waited for longer than `answer_within`. Each connection is checked when it is lent, so that a
    server that was restarted costs no run. When one has to be given up, all that were made before it are replaced.
    """
    seconds = answer_within.total_seconds()
    arguments: dict[str, Any] = {"autocommit": True, "connect_timeout": CONNECT_SECONDS}
    if not settings.url.prepare:  # behind a pooler that shares sessions
        arguments["prepare_threshold"] = None
    drained_at = 0.0

    def replace_all(lost: BoundedConnection) -> None:
        nonlocal drained_at
        if lost.made_at > drained_at:  # else it is one of those that are being replaced already
            drained_at = time.monotonic()
            connections.drain()

    def configure(connection: BoundedConnection) -> None:
        connection.answer_within, connection.made_at, connection.on_loss = seconds, time.monotonic(), replace_all

    connections = ConnectionPool(
        lambda: with_keepalives(settings.current_url().conninfo, answer_within),
        connection_class=BoundedConnection,
        kwargs=arguments,
        configure=configure,
        min_size=0,
        max_size=settings.connections,
        timeout=min(CONNECT_SECONDS + 1, seconds),
        max_lifetime=settings.connection_lifetime.total_seconds(),
        max_idle=60,
        reconnect_timeout=CONNECT_SECONDS,
        check=_check,
        num_workers=1,
        open=False,
        name="secrets-bridge-worker",
    )
    return cast("ConnectionPool[Connection[Any]]", connections)


def with_keepalives(conninfo: str, answer_within: timedelta) -> str:
    """Return the connection string with the kernel's own limits below ours, where it does not name its own.

    They free what nobody waits on: a connection that is idle, or closed by us while the other side is gone.
    """
    seconds = max(1, int(answer_within.total_seconds()) // 4)
    own = {
        "keepalives_idle": seconds,
        "keepalives_interval": seconds,
        "keepalives_count": 2,
        "tcp_user_timeout": answer_within // timedelta(milliseconds=1),
    }
    return make_conninfo(
        conninfo, **{name: value for name, value in own.items() if name not in conninfo_to_dict(conninfo)}
    )


def _check(connection: BoundedConnection) -> None:
    """Raise unless the connection answers soon, or has done so a moment ago."""
    if time.monotonic() - connection.answered_at < FRESH_SECONDS:
        return
    usual, connection.answer_within = connection.answer_within, min(connection.answer_within, CHECK_SECONDS)
    try:
        ConnectionPool.check_connection(connection)
    finally:
        connection.answer_within = usual


def connect(settings: DatabaseSettings, answer_within: timedelta = ANSWER_WITHIN) -> Connection[Any]:
    """Connect once, outside of any pool; no statement is waited for longer than `answer_within`.

    Raises BootError with the reason when there is no connection.
    """
    conninfo = with_keepalives(settings.current_url().conninfo, answer_within)
    try:
        connection = BoundedConnection.connect(conninfo, autocommit=True, connect_timeout=CONNECT_SECONDS)
    except psycopg.Error as error:
        raise BootError(f"DATABASE_URL: PostgreSQL cannot be reached: {_reason(error)}") from None
    connection.answer_within = answer_within.total_seconds()
    return connection


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
