"""Behind what others have between a worker and its servers: real poolers and proxies."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from datetime import timedelta
from urllib.parse import urlsplit

import psycopg
import pytest
import redis as redis_py

from app.core.errors import BootError
from app.demo.ports import reserved_port
from app.demo.servers import Redis
from app.storage import postgres
from app.storage.postgres_dsn import parse_database_url
from app.storage.redis import connect
from app.storage.redis_dsn import parse_redis_url
from app.storage.settings import DatabaseSettings, RedisSettings
from tests.storage.between import HAProxy, PgBouncer
from tests.support.processes import environment, finished
from tests.support.proxy import Proxy
from tests.support.rights.grants import ROLE
from tests.support.waiting import HUNG, eventually

EXEC = "default_query_exec_mode=exec"


@pytest.fixture
def pooled(database: str) -> Iterator[str]:
    """Return the URL of the database behind a PgBouncer in transaction mode."""
    url = urlsplit(database)
    with reserved_port() as port, PgBouncer(port, url.port or 0, database=url.path[1:], user=ROLE):
        yield database.replace(f":{url.port}/", f":{port}/")


def settings(url: str) -> DatabaseSettings:
    return DatabaseSettings(url=parse_database_url(url))


def test_commands_leave_no_statement_behind(pooled: str, redis_server: Redis, database: str) -> None:
    """Named ones stay in a session of the pooler, and the next client's of that name is refused (42P05)."""
    env = environment(f"{pooled}?{EXEC}", redis_server.url())
    for _ in range(3):
        done = finished(("sb-worker", "check"), env)
        assert done.returncode == 0, done.stdout
    told = {"status": 3, "why wraps-expired": 3, "runs": 0, "verify": 0, "sweep wraps-expired": 0}  # nobody lives here
    for words, status in told.items():
        done = finished(("sb-worker", *words.split()), env)
        assert done.returncode == status, done.stdout + done.stderr
    with psycopg.connect(pooled, prepare_threshold=None) as connection:
        assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
    del database


@pytest.mark.parametrize("mode", ["exec", "simple_protocol", "cache_describe", "describe_exec"])
def test_one_connection_may_ask_the_same_as_often_as_it_likes(pooled: str, mode: str) -> None:
    """As `status --watch` does, and the pool of a worker."""
    url = f"{pooled}?default_query_exec_mode={mode}"
    with postgres.connect(settings(url)) as one, postgres.connect(settings(url)) as other:
        for number in range(20):
            for connection in (one, other):
                assert connection.execute("SELECT %s::int", [number]).fetchone() == (number,)
    with postgres.pool(settings(url)) as pool:
        pool.open()
        for number in range(20):
            with pool.connection() as connection:
                assert connection.execute("SELECT %s::int", [number]).fetchone() == (number,)


def test_a_time_zone_gets_through_as_pgx_sends_it(pooled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGTZ", "UTC")  # and is put back
    with postgres.connect(settings(f"{pooled}?{EXEC}&TimeZone=Asia/Shanghai")) as connection:
        assert connection.execute("SHOW timezone").fetchone() == ("Asia/Shanghai",)


def test_what_a_pooler_refuses_is_told(pooled: str) -> None:
    for url, text in {
        f"{pooled}?work_mem=1MB": "the server or pooler refuses a setting that the URL carries",
        f"{pooled}x": "the pooler does not know this database|the database does not exist",
    }.items():
        with pytest.raises(BootError, match=text):
            postgres.connect(settings(url))


def test_a_proxy_without_a_server_behind_it_is_told() -> None:
    with reserved_port() as port, reserved_port() as nobody, HAProxy(port, nobody):
        with pytest.raises(BootError, match="closes the connection at once"):
            postgres.connect(settings(f"postgres://u@127.0.0.1:{port}/d"))
        found = finished(("sb-worker", "check"), environment("postgres://u@127.0.0.1:1/d", f"redis://127.0.0.1:{port}"))
        assert "REDIS_URL: Redis cannot be used: the connection is closed" in found.stdout


def test_a_proxy_that_ends_idle_connections_costs_nothing(database: str, redis_server: Redis) -> None:
    url = urlsplit(database)
    with (
        reserved_port() as port,
        HAProxy(port, url.port or 0),
        postgres.pool(settings(database.replace(f":{url.port}/", f":{port}/"))) as pool,
    ):
        pool.open()
        with pool.connection() as first:
            first.execute("SELECT 1")
        eventually(lambda: _ended(first))
        with pool.connection() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    with reserved_port() as port, HAProxy(port, redis_server.port):
        shared = RedisSettings(url=parse_redis_url(f"redis://127.0.0.1:{port}"))
        with connect(shared, answer_within=timedelta(seconds=HUNG)) as client:
            before = client.client_id()
            with redis_py.Redis(port=redis_server.port) as admin:
                eventually(lambda: not [one for one in admin.client_list() if one["id"] == str(before)])
            assert client.ping()
            assert client.client_id() != before


def _ended(connection: psycopg.Connection[object]) -> bool:
    """Return whether the other side has closed: a socket that can be read while nothing was asked."""
    return bool(connection.closed or select.select([connection.fileno()], [], [], 0)[0])


class TestSlow:
    """A database that takes seconds to accept."""

    @pytest.fixture
    def slow(self, database: str) -> Iterator[str]:
        url = urlsplit(database)
        with Proxy(url.port or 0, delay=3.0) as proxy:
            yield database.replace(f":{url.port}/", f":{proxy.port}/")

    @pytest.mark.parametrize("named", ["", "?connect_timeout=15", "?connect_timeout=0"])
    def test_it_is_waited_for(self, slow: str, named: str) -> None:
        postgres.connect(settings(slow + named)).close()

    def test_a_pool_waits_as_long_as_was_said(self, slow: str) -> None:
        with postgres.pool(settings(f"{slow}?connect_timeout=15")) as pool:
            pool.open()
            with pool.connection() as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)

    def test_without_a_word_the_next_borrower_has_it(self, slow: str) -> None:
        def works() -> bool:
            try:
                with pool.connection() as connection:
                    return connection.execute("SELECT 1").fetchone() == (1,)
            except psycopg.Error:
                return False

        with postgres.pool(settings(slow)) as pool:
            pool.open()
            eventually(works)

    def test_but_no_longer_than_was_said(self, slow: str) -> None:
        began = time.monotonic()
        with pytest.raises(BootError, match="no answer in time; connect_timeout"):
            postgres.connect(settings(f"{slow}?connect_timeout=2"))
        assert time.monotonic() - began < HUNG
