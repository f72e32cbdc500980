"""Readiness with servers that answer and are of no use."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import wait
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import redis as redis_py
from psycopg import Connection
from psycopg_pool import ConnectionPool

from app.worker import readiness
from app.worker.readiness import Check, Readiness, postgres_check, redis_check
from tests.support.rights.acl import GrantedRedis
from tests.support.rights.grants import as_role
from tests.support.waiting import HUNG, eventually


@pytest.fixture(autouse=True)
def _always_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(readiness, "CHECK_SECONDS", HUNG)


def answer(checks: Mapping[str, Check]) -> tuple[int, dict[str, Any]]:
    """Return what a booted worker with these checks says."""
    state = Readiness(checks)
    state.booted = True
    pending = state.pending()
    wait(pending.results, pending.seconds)
    said = pending.make()
    return said.status, json.loads(said.body)


READY = (200, {"status": "ready"})


def not_ready(**failing: str) -> tuple[int, dict[str, Any]]:
    return 503, {"failing": failing, "status": "not_ready"}


@pytest.fixture
def pool(database: str) -> Iterator[ConnectionPool[Connection[Any]]]:
    with ConnectionPool[Connection[Any]](
        database, kwargs={"autocommit": True}, min_size=0, max_size=2, check=ConnectionPool.check_connection, open=True
    ) as pool:
        yield pool


def test_a_postgres_that_takes_no_writes_is_of_no_use(
    pool: ConnectionPool[Connection[Any]], sql: Connection[Any]
) -> None:
    checks = {"postgres": postgres_check(pool)}
    assert answer(checks) == READY
    name = sql.info.dbname
    sql.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
    sql.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()", [name]
    )
    assert answer(checks) == not_ready(postgres="read_only")
    sql.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())
    sql.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()", [name]
    )
    assert answer(checks) == READY


def test_a_postgres_that_denies_us_our_schema_is_of_no_use(database: str, sql: Connection[Any]) -> None:
    sql.execute("DROP ROLE IF EXISTS unready")
    sql.execute("CREATE ROLE unready LOGIN")
    url = as_role(database, "unready")
    with ConnectionPool[Connection[Any]](url, kwargs={"autocommit": True}, min_size=0, max_size=1, open=True) as pool:
        checks = {"postgres": postgres_check(pool)}
        assert answer(checks) == not_ready(postgres="denied")
        sql.execute("GRANT USAGE ON SCHEMA secrets_bridge_worker TO unready")
        assert answer(checks) == not_ready(postgres="denied")
        sql.execute("GRANT SELECT, UPDATE ON secrets_bridge_worker.sweep_state TO unready")
        assert answer(checks) == READY
    sql.execute("DROP OWNED BY unready")
    sql.execute("DROP ROLE unready")


def test_a_postgres_that_is_away_is_unreachable() -> None:
    with ConnectionPool[Connection[Any]]("postgres://x@127.0.0.1:1/x", min_size=0, max_size=1, timeout=0.1) as pool:

        def check() -> None:
            with pool.connection(timeout=0.1):
                raise AssertionError

        assert answer({"postgres": check}) == not_ready(postgres="unreachable")


@contextmanager
def changed(client: redis_py.Redis, do: tuple[str, ...], undo: tuple[str, ...]) -> Iterator[None]:
    client.execute_command(*do)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        client.execute_command(*undo)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("do", "undo", "word"),
    [
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), "read_only"),
        (("CONFIG", "SET", "min-replicas-to-write", "1"), ("CONFIG", "SET", "min-replicas-to-write", "0"), "read_only"),
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), "no_room"),
    ],
)
def test_a_redis_that_takes_no_writes_is_of_no_use(
    any_redis_server: GrantedRedis, do: tuple[str, ...], undo: tuple[str, ...], word: str
) -> None:
    with redis_py.Redis.from_url(any_redis_server.owner_url()) as client:
        checks = {"redis": redis_check(client, "secrets-bridge", "dramatiq")}
        assert answer(checks) == READY
        with changed(client, do, undo):
            assert answer(checks) == not_ready(redis=word)
        assert answer(checks) == READY
        assert client.keys("*readiness*") == []


@pytest.mark.parametrize(
    "rules",
    [
        "+@all -pexpire ~*",
        "+@all -evalsha ~*",
        "+@all -zadd ~*",
        "+@all ~dramatiq:*",
        "+@all ~secrets-bridge:*",
        "+@all ~secrets-bridge:lock:* ~dramatiq:*",
        "+@read ~*",
    ],
)
def test_a_redis_that_denies_commands_or_keys_is_of_no_use(any_redis_server: GrantedRedis, rules: str) -> None:
    with redis_py.Redis.from_url(any_redis_server.owner_url()) as admin:
        admin.execute_command("ACL", "SETUSER", "unready", "reset", "on", "nopass", *rules.split())
        with redis_py.Redis.from_url(any_redis_server.owner_url(), username="unready", password="x") as client:
            checks = {"redis": redis_check(client, "secrets-bridge", "dramatiq")}
            assert answer(checks) == not_ready(redis="denied")
            admin.execute_command("ACL", "SETUSER", "unready", "+@all", "~*")
            assert answer(checks) == READY
        admin.execute_command("ACL", "DELUSER", "unready")


def test_no_word_of_a_server_is_shown() -> None:
    def fail(error: Exception) -> Callable[[], None]:
        def check() -> None:
            raise error

        return check

    errors = {
        "postgres": psycopg.OperationalError("canary"),
        "redis": redis_py.ResponseError("canary"),
        "other": ValueError("canary"),
        "away": redis_py.ConnectionError("canary"),
        "login": redis_py.AuthenticationError("canary"),
    }
    status, body = answer({name: fail(error) for name, error in errors.items()})
    assert status == 503
    assert body["failing"] == {
        "postgres": "unreachable",
        "redis": "failed",
        "other": "failed",
        "away": "unreachable",
        "login": "denied",
    }


def test_a_check_that_hangs_is_started_once_and_answered_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "CHECK_SECONDS", 0.05)
    over, begun = threading.Event(), list[float]()

    def hang() -> None:
        begun.append(time.monotonic())
        over.wait(HUNG)

    state = Readiness({"redis": hang})
    state.booted = True
    for _ in range(5):
        pending = state.pending()
        wait(pending.results, pending.seconds)
        assert json.loads(pending.make().body)["failing"] == {"redis": "timeout"}
    assert len(begun) == 1
    over.set()

    def answered() -> bool:
        pending = state.pending()
        wait(pending.results, HUNG)
        return pending.make().status == 200

    eventually(answered)


def test_what_many_ask_is_asked_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "FRESH_SECONDS", HUNG)
    asked: list[int] = []
    state = Readiness({"redis": lambda: asked.append(1)})
    state.booted = True
    for _ in range(50):
        wait(state.pending().results, HUNG)
    assert len(asked) == 1


def test_a_worker_that_boots_or_drains_says_so_without_asking_anybody() -> None:
    def never() -> None:
        raise AssertionError

    state = Readiness({"redis": never})
    assert (state.pending().make().status, state.pending().make().body) == (503, b'{"status":"booting"}\n')
    state.booted = state.draining = True
    assert json.loads(state.pending().make().body)["failing"] == {"worker": "draining"}
    assert state.pending().results == ()
