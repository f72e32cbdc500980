"""Connections to PostgreSQL."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psycopg
from psycopg import Connection, Cursor
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool

from app.core.errors import BootError
from app.storage.certificates import is_out_of_date
from app.storage.connection import ANSWER_WITHIN, BoundedConnection
from app.storage.postgres_reasons import NOT_TRUSTED, reason

if TYPE_CHECKING:
    from app.storage.postgres_parameters import DatabaseUrl
    from app.storage.settings import DatabaseSettings

Row = TypeVar("Row")

#: Seconds to wait for a connection, where the URL has no `connect_timeout`: a run that cannot have one soon fails and
#: is retried. One that takes longer to make is there for the retry.
CONNECT_SECONDS = 2
#: Seconds in which a connection that is lent must answer; a silent one costs its borrower no more.
CHECK_SECONDS = 1.0
#: For so many seconds after an answer a connection counts as alive: a run borrows it anew for each transaction.
FRESH_SECONDS = 1.0
#: PostgreSQL 14 is the first with the range scans that the sweeps use.
OLDEST_SERVER = 140_000


def pool(settings: DatabaseSettings, answer_within: timedelta = ANSWER_WITHIN) -> ConnectionPool[Connection[Any]]:
    """Return a pool that is not open yet: open it after the fork. It keeps no connection that nobody uses.

    No statement is waited for longer than `answer_within`. Each connection is checked when it is lent, so that a
    server that was restarted costs no run. When one has to be given up, all that were made before it are replaced.
    """
    seconds = answer_within.total_seconds()
    drained_at = 0.0

    def replace_all(lost: BoundedConnection) -> None:
        nonlocal drained_at
        if lost.made_at > drained_at:  # else it is one of those that are being replaced already
            drained_at = time.monotonic()
            connections.drain()

    def configure(connection: BoundedConnection) -> None:
        connection.answer_within, connection.made_at, connection.on_loss = seconds, time.monotonic(), replace_all

    connections = ConnectionPool(
        lambda: _conninfo(settings.current_url(), answer_within),
        connection_class=BoundedConnection,
        kwargs=_arguments(settings.url),
        configure=configure,
        min_size=0,
        max_size=settings.connections,
        timeout=min((settings.url.connect_seconds or CONNECT_SECONDS) + 1, seconds),
        max_lifetime=settings.connection_lifetime.total_seconds(),
        max_idle=60,
        reconnect_timeout=CONNECT_SECONDS,
        check=_check,
        num_workers=1,
        open=False,
        name="secrets-bridge-worker",
    )
    return cast("ConnectionPool[Connection[Any]]", connections)


def _arguments(url: DatabaseUrl) -> dict[str, Any]:
    """Return how every connection is made; behind a pooler that shares sessions no statement may have a name there."""
    return {"autocommit": True} | ({} if url.prepare else {"prepare_threshold": None})


def _conninfo(url: DatabaseUrl, answer_within: timedelta) -> str:
    for name, value in url.environment.items():
        if os.environ.get(name) != value:  # once: another thread may be reading the environment later
            os.environ[name] = value
    return with_limits(url.conninfo, answer_within, url.connect_seconds)


def with_limits(conninfo: str, answer_within: timedelta, connect_seconds: int | None = None) -> str:
    """Return the connection string with limits on making a connection, and on its silence.

    Each address has so many seconds, by default what an answer may take, shared by the hosts. The kernel's own limits,
    where the string does not name others, are below ours: they free what nobody waits on, a connection that is idle, or
    closed by us while the other side is gone.
    """
    named = conninfo_to_dict(conninfo)
    most = int(answer_within.total_seconds())
    seconds = max(1, most // 4)
    hosts = str(named.get("host", "")).count(",") + 1
    own = {
        "connect_timeout": connect_seconds or max(CONNECT_SECONDS, most // hosts),
        "keepalives_idle": seconds,
        "keepalives_interval": seconds,
        "keepalives_count": 2,
        "tcp_user_timeout": answer_within // timedelta(milliseconds=1),
    }
    return make_conninfo(conninfo, **{name: value for name, value in own.items() if name not in named})


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
    url = settings.current_url()
    conninfo = _conninfo(url, answer_within)
    try:
        connection = BoundedConnection.connect(conninfo, **_arguments(url))
    except psycopg.Error as error:
        text = reason(error)
        if text == NOT_TRUSTED and is_out_of_date(conninfo_to_dict(conninfo), answer_within.total_seconds()):
            text = "the server's certificate has expired, or is not valid yet"
        raise BootError(f"DATABASE_URL: PostgreSQL cannot be reached: {text}") from None
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
