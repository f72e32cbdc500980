"""A server that goes silent costs a statement, not a thread: the connection is cut by this process's own clock."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool
from structlog.testing import capture_logs

from app.core import metrics
from app.storage import postgres
from app.storage.connection import BoundedConnection
from app.storage.settings import DatabaseSettings
from tests.support.proxy import Proxy
from tests.support.waiting import HUNG, eventually

SECOND = timedelta(seconds=1)


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    """Return a proxy before the database's server."""
    with Proxy(urlsplit(database).port or 0) as between:
        yield between


@pytest.fixture
def through(proxy: Proxy, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ConnectionPool[Connection[Any]]]:
    """Return the worker's own pool, through the proxy, with a second for each answer."""
    monkeypatch.setenv("DATABASE_URL", database.replace(f":{urlsplit(database).port}/", f":{proxy.port}/"))
    with postgres.pool(DatabaseSettings.read(), SECOND) as pool:
        pool.open()
        yield pool


def lost(reason: str) -> float:
    value: float = metrics.CONNECTIONS_LOST.labels(reason)._value.get()
    return value


def test_a_statement_on_a_silent_connection_fails_and_the_next_borrower_gets_a_new_one(
    proxy: Proxy, through: ConnectionPool[Connection[Any]]
) -> None:
    before = lost("silent")
    with capture_logs() as records:
        with through.connection() as connection:
            assert proxy.silence() == 1
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
            assert connection.closed
        with through.connection() as fresh:
            assert fresh.execute("SELECT 1").fetchone() == (1,)
    assert lost("silent") == before + 1
    assert [record["reason"] for record in records if record["event"] == "PostgreSQL connection given up"] == ["silent"]


def test_a_commit_on_a_silent_connection_fails_too(proxy: Proxy, through: ConnectionPool[Connection[Any]]) -> None:
    with through.connection() as connection:
        connection.execute("BEGIN")
        proxy.silence()
        with pytest.raises(psycopg.OperationalError):
            connection.commit()


def test_one_silent_connection_has_all_of_that_age_replaced(
    proxy: Proxy, through: ConnectionPool[Connection[Any]]
) -> None:
    ready, silent = threading.Barrier(6, timeout=HUNG), threading.Event()
    outcomes: list[str] = []

    def borrow() -> None:
        try:
            with through.connection() as connection:
                ready.wait()
                silent.wait(HUNG)
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            outcomes.append("lost")

    threads = [threading.Thread(target=borrow) for _ in range(5)]
    for thread in threads:
        thread.start()
    ready.wait()
    proxy.silence()
    silent.set()
    for thread in threads:
        thread.join(HUNG)
    assert outcomes == ["lost"] * 5
    for _ in range(10):
        with through.connection() as connection:
            connection.execute("SELECT 1")


def test_idle_connections_that_went_silent_are_not_lent(
    proxy: Proxy, through: ConnectionPool[Connection[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "FRESH_SECONDS", 0.0)  # as if they had been idle for long
    with through.connection() as first, through.connection() as second:
        for connection in (first, second):
            connection.execute("SELECT 1")
    proxy.silence()

    def works() -> bool:
        try:
            with through.connection() as connection:
                return connection.execute("SELECT 1").fetchone() == (1,)
        except psycopg.Error:
            return False

    eventually(works)


def test_a_connection_that_has_become_a_standbys_is_given_up(
    through: ConnectionPool[Connection[Any]], sql: Connection[Any]
) -> None:
    """As after a failover that leaves connections open: the server answers, and takes no writes."""
    sql.execute("CREATE TABLE t (i int); GRANT INSERT ON t TO PUBLIC")
    before = lost("standby")
    with through.connection() as old:
        old.execute("SET default_transaction_read_only = on")
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            old.execute("INSERT INTO t VALUES (1)")
    with through.connection() as new:
        assert new is not old
        new.execute("INSERT INTO t VALUES (1)")
    assert old.closed
    assert lost("standby") == before + 1


def test_the_kernel_is_told_too_where_the_url_does_not(database: str) -> None:
    found = conninfo_to_dict(postgres.with_limits(database, timedelta(seconds=8)))
    assert {name: found[name] for name in ("keepalives_idle", "keepalives_interval", "keepalives_count")} == {
        "keepalives_idle": "2",
        "keepalives_interval": "2",
        "keepalives_count": "2",
    }
    assert found["tcp_user_timeout"] == "8000"
    own = postgres.with_limits(f"{database}?keepalives_idle=100&tcp_user_timeout=5", timedelta(seconds=8))
    assert (conninfo_to_dict(own)["keepalives_idle"], conninfo_to_dict(own)["tcp_user_timeout"]) == ("100", "5")


def test_a_connection_outside_of_any_pool_is_bounded_too(
    proxy: Proxy, through: ConnectionPool[Connection[Any]]
) -> None:
    del through
    with postgres.connect(DatabaseSettings.read(), SECOND) as connection:
        assert isinstance(connection, BoundedConnection)
        proxy.silence()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
