"""What PostgreSQL and Redis say, when they are asked as an overview asks them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis as redis_py
from psycopg import Connection
from psycopg.rows import dict_row

from actors.agents_stale import agents_stale
from actors.wraps_expired import wraps_expired
from app.demo.ports import reserved_port
from app.demo.servers import Redis
from app.overview.model import Blocker
from app.overview.sources import backlogs, blockers, locks
from tests.support.rows import FIXED, column, insert_agent, insert_wrap
from tests.support.waiting import HUNG, eventually

NAMES = ["wraps-expired", "agents-stale"]
LOCK = "secrets-bridge:lock:worker:sweeper:wraps-expired"
CANCEL_WHO_WAITS = """
SELECT pg_cancel_backend(pid) FROM pg_stat_activity
 WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0
"""


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[redis_py.Redis]:
    """Return a client of a Redis that a test may break."""
    with reserved_port() as port, Redis(tmp_path, port=port) as server, redis_py.Redis(port=port) as client:
        assert server.url().startswith("redis://")
        yield client


def read(client: redis_py.Redis) -> locks.Locks:
    return locks.read(client, "secrets-bridge", NAMES)


def test_a_lock_is_read_with_its_holder_and_the_time_that_is_left(admin: redis_py.Redis) -> None:
    admin.set(LOCK, "f" * 32, px=60_000)
    found = read(admin)
    assert (found.server.problem, found.server.version) != ("", "")
    assert list(found.held) == ["wraps-expired"]
    lock = found.held["wraps-expired"]
    assert lock.token == b"f" * 32
    assert lock.expires_in is not None
    assert timedelta(0) < lock.expires_in <= timedelta(minutes=1)


def break_by_memory(admin: redis_py.Redis) -> redis_py.Redis:
    admin.config_set("maxmemory", "1")
    return admin


def break_by_demotion(admin: redis_py.Redis) -> redis_py.Redis:
    admin.replicaof("127.0.0.1", "1")
    return admin


def user(admin: redis_py.Redis, *commands: str) -> redis_py.Redis:
    acl: Any = admin.acl_setuser
    acl("asking", enabled=True, reset=True, passwords=["+pw"], keys=["*"], commands=list(commands))
    return redis_py.Redis(port=admin.connection_pool.connection_kwargs["port"], username="asking", password="pw")


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        (break_by_memory, "OOM"),
        (break_by_demotion, "READONLY"),
        (lambda admin: user(admin, "+ping", "+get", "+pttl"), "NOPERM"),
        (lambda _: redis_py.Redis(port=1), "unreachable"),
    ],
)
def test_a_redis_that_is_of_no_use_is_told_by_its_word(
    fault: Callable[[redis_py.Redis], redis_py.Redis], word: str, admin: redis_py.Redis
) -> None:
    with fault(admin) as client:
        found = read(client)
    assert found.server.problem == word
    assert found.server.detail
    assert found.held == {}


def test_a_lock_is_told_without_the_right_to_ask_for_its_time(admin: redis_py.Redis) -> None:
    admin.set(LOCK, "f" * 32, px=60_000)
    with user(admin, "+ping", "+get", "+set") as client:
        found = read(client)
    assert found.server.problem == ""
    assert found.held["wraps-expired"].expires_in is None


@pytest.fixture
def plain(database: str) -> Iterator[Connection[Any]]:
    """Return a connection as the command has one."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def seen_by(sql: Connection[Any], tables: list[str], least: timedelta = timedelta(0)) -> list[Blocker]:
    return blockers.read(sql.cursor(row_factory=dict_row), tables, least)


@contextmanager
def waiting(database: str, statement: str) -> Iterator[int]:
    """Have a session wait by a statement; yield its pid."""
    with psycopg.connect(database) as waiter:

        def wait() -> None:
            with suppress(psycopg.errors.QueryCanceled):
                waiter.execute(statement.encode())

        def ended() -> bool:
            waiter.cancel_safe()  # at each look: one that comes before the statement has begun is lost
            return not thread.is_alive()

        thread = threading.Thread(target=wait)
        thread.start()
        try:
            yield waiter.info.backend_pid
        finally:
            eventually(ended)


def test_who_holds_a_row_that_one_of_our_role_waits_for_is_seen(
    database: str, sql: Connection[Any], plain: Connection[Any]
) -> None:
    sql.execute(
        "INSERT INTO secrets_bridge_worker.sweep_state (name, last_slot, previous_slot, token)"
        " VALUES ('wraps-expired', 'epoch', 'epoch', 1)"
    )
    update = "UPDATE secrets_bridge_worker.sweep_state SET token = token + 1"
    with psycopg.connect(database) as holder:
        holder.execute(update.encode())
        with waiting(database, update):
            seen = eventually(lambda: seen_by(plain, []))
        expected = (holder.info.backend_pid, "idle in transaction", True)
    assert [(one.pid, one.state, one.own_role) for one in seen] == [expected]


def test_who_only_reads_a_table_keeps_nobody_from_it(database: str, plain: Connection[Any]) -> None:
    with psycopg.connect(database) as reader:
        reader.execute("SELECT count(*) FROM secret_wraps")
        assert seen_by(plain, ["secret_wraps"]) == []


def test_a_lock_of_a_moment_is_not_told(database: str, plain: Connection[Any]) -> None:
    with psycopg.connect(database) as holder:
        holder.execute("LOCK TABLE secret_wraps IN ACCESS EXCLUSIVE MODE")
        assert seen_by(plain, ["secret_wraps"], timedelta(hours=1)) == []
        assert [one.table for one in seen_by(plain, ["secret_wraps"])] == ["secret_wraps"]


def test_who_waits_for_a_reader_is_told_and_keeps_others_out(database: str, plain: Connection[Any]) -> None:
    with psycopg.connect(database) as reader:
        reader.execute("SELECT count(*) FROM secret_wraps")
        with waiting(database, "LOCK TABLE secret_wraps IN ACCESS EXCLUSIVE MODE") as waiter:
            both = eventually(lambda: len(seen := seen_by(plain, ["secret_wraps"])) == 2 and seen)
        expected = {reader.info.backend_pid, waiter}
    assert {one.pid for one in both} == expected


def test_a_locked_table_costs_no_other_its_count(database: str, sql: Connection[Any], plain: Connection[Any]) -> None:
    insert_wrap(sql, FIXED)
    insert_agent(sql, "old", last_seen_at=FIXED)
    pairs: Any = [(sweeper, sweeper.settings.read()) for sweeper in (wraps_expired, agents_stale)]
    hung = timedelta(seconds=HUNG)
    with psycopg.connect(database) as holder, ThreadPoolExecutor(1) as pool:
        holder.execute("LOCK TABLE secret_wraps IN ACCESS EXCLUSIVE MODE")
        assert backlogs.read(plain, pairs[:1], timedelta(milliseconds=250), hung) == {}
        # How PostgreSQL ends a statement whose time is over, without a time that the other count would have to keep to.
        counting = pool.submit(backlogs.read, plain, pairs, hung, 2 * hung)
        eventually(lambda: column(sql, CANCEL_WHO_WAITS) == [True])
        found = counting.result(HUNG)
    assert {name: backlog.rows for name, backlog in found.items()} == {"agents-stale": 1}
    assert column(sql, "SELECT count(*) FROM agents") == [1]


def test_a_pass_takes_as_many_runs_as_the_table_has_pages_unless_there_is_an_index(sql: Connection[Any]) -> None:
    sql.execute(
        "INSERT INTO secret_wraps (encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash, byte_length,"
        " expires_at) SELECT '1', '2', '3', repeat('k', 900), '4', 1, now() FROM generate_series(1, 21000)"
    )
    sweepers: list[Any] = [wraps_expired, agents_stale]
    passes = backlogs.runs_a_pass(sql, sweepers, 1000)
    assert passes.keys() == {"wraps-expired"}
    assert 3 <= passes["wraps-expired"] <= 4
    sql.execute("CREATE INDEX ON secret_wraps (expires_at)")
    assert backlogs.runs_a_pass(sql, sweepers, 1000) == {}
