"""How a run ends, what it leaves to others, and what it holds meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
import redis as redis_py
from psycopg import Connection
from psycopg_pool import ConnectionPool
from structlog.testing import capture_logs

from actors.agents_stale import AgentsStale, agents_stale
from actors.wraps_expired import WrapsExpired, wraps_expired
from app.demo.servers import Postgres
from app.sweeping.scans.batch_size import BatchSizer
from app.sweeping.strategy import Run, Step, Strategy
from app.sweeping.sweeper import Sweep
from tests.support.replica import Replica
from tests.support.rows import column, insert_wrap, rows
from tests.support.waiting import HUNG
from tests.sweeping.runs.looking import (
    PAST,
    RUNS,
    SECOND,
    STATE,
    await_next_second,
    expired,
    wrapped,
)


@pytest.mark.parametrize("consumed", [True, False])
def test_a_run_out_of_time_hands_over_and_the_next_goes_on_from_there(
    replica: Replica, sql: Connection[Any], consumed: bool
) -> None:
    expired(sql, 4000, consumed=consumed)
    replica.runner.budget = timedelta(milliseconds=1)
    settings = WrapsExpired(interval=SECOND)
    changed = replica.run(wraps_expired, settings).changed
    assert 0 < changed < 4000
    (run,) = rows(sql, RUNS)
    assert (run["outcome"], run["handed_over"]) == ("success", True)
    position = rows(sql, STATE)[0]["position"]
    assert position > 0

    replica.runner.budget = timedelta(hours=1)
    visited: list[Run] = []
    await_next_second(sql)
    rest = replica.run(wrapped(wraps_expired, lambda run, _sizer: visited.append(run)), settings).changed
    assert rest == 4000 - changed
    assert visited[0].position == position
    assert rows(sql, STATE)[0]["position"] == 0


def test_a_process_that_is_told_to_stop_ends_its_run_between_batches(replica: Replica, sql: Connection[Any]) -> None:
    expired(sql, 4000)
    replica.runner.stopping = lambda: True
    assert 0 < replica.run(wraps_expired, WrapsExpired()).changed < 4000
    assert rows(sql, RUNS)[0]["handed_over"]


def test_rows_that_somebody_holds_are_left_for_later(database: str, replica: Replica, sql: Connection[Any]) -> None:
    held, free = insert_wrap(sql, PAST), insert_wrap(sql, PAST)
    with psycopg.connect(database) as other:
        other.execute("SELECT FROM secret_wraps WHERE id = %s FOR UPDATE", [held])
        assert replica.run(wraps_expired, WrapsExpired()).changed == 1  # a wait would end in an error: lock_timeout
    assert column(sql, "SELECT id::text FROM secret_wraps") == [held]
    assert free != held


def test_rows_that_move_to_new_pages_during_the_walk_are_found(replica: Replica, sql: Connection[Any]) -> None:
    expired(sql, 2000)
    moved: list[int] = []

    def move(_run: Run, _sizer: BatchSizer) -> None:
        if not moved:
            moved.append(1)
            sql.execute("UPDATE secret_wraps SET byte_length = 2")

    replica.run(wrapped(wraps_expired, move), WrapsExpired())
    assert column(sql, "SELECT count(*) FROM secret_wraps") == [0]


def test_old_rows_of_the_ledger_are_pruned(replica: Replica, sql: Connection[Any]) -> None:
    sql.execute(
        "INSERT INTO secrets_bridge_worker.sweep_run (name, slot, worker, started_at, outcome) SELECT 'wraps-expired',"
        " now() - n * interval '1 day', 'w', now() - n * interval '1 day', 'success' FROM generate_series(1, 20) AS n"
    )
    replica.run(wraps_expired, WrapsExpired())
    assert column(sql, "SELECT count(*) FROM secrets_bridge_worker.sweep_run") == [7]


def test_a_database_that_is_away_fails_the_run_and_not_the_process(postgres: Postgres, redis: redis_py.Redis) -> None:
    nowhere = f"postgres://postgres@127.0.0.1:{postgres.port}/nowhere"
    with (
        ConnectionPool[Connection[Any]](nowhere, min_size=0, max_size=1, timeout=1) as pool,
        Replica(pool, redis, lease=timedelta(seconds=15)) as replica,
        capture_logs() as records,
    ):
        assert str(replica.fails(agents_stale, AgentsStale())) == "PoolTimeout"
    told = [record["title"] for record in records if record["event"] == "event not stored"]
    assert told == ["flag stale agents failed"]


def test_a_sweep_cannot_carry_a_text() -> None:
    with pytest.raises(TypeError, match="whole numbers"):
        Sweep(counts={"name": "canary"})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="whole numbers"):
        Sweep(changed=True)
    with pytest.raises(TypeError, match="time zone"):
        Sweep(cutoff=datetime(2026, 1, 1))  # noqa: DTZ001 - a naive one is the point


def test_every_transaction_is_limited_below_the_lease(replica: Replica, sql: Connection[Any]) -> None:
    seen: list[str] = []

    def look(run: Run, _sizer: BatchSizer) -> None:
        names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        seen.extend(run.row("SELECT current_setting(%(name)s) AS value", name=name)["value"] for name in names)

    replica.run(wrapped(wraps_expired, look), WrapsExpired())
    assert seen == ["20s", "10s", "15s"]


def test_a_run_that_waits_for_others_holds_no_connection(database: str, redis: redis_py.Redis) -> None:
    with (
        ConnectionPool[Connection[Any]](database, kwargs={"autocommit": True}, min_size=0, max_size=1) as pool,
        Replica(pool, redis, lease=timedelta(seconds=60)) as replica,
    ):

        class Waiting(Strategy):
            waited = False

            def step(self, run: Run, *, over: bool) -> Step:
                del run, over
                return Step({}, last=self.waited)

            def wait(self, stopping: Callable[[], bool]) -> None:
                del stopping
                with pool.connection(timeout=HUNG) as connection:
                    connection.execute("SELECT 1")
                self.waited = True

        replica.run(replace(wraps_expired, strategy=lambda _settings: Waiting()), WrapsExpired())
