"""A run whose lock is gone, or whose successor has begun, changes nothing any more."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import redis as redis_py
from psycopg import Connection
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from actors.wraps_expired import WrapsExpired, wraps_expired
from app.core.errors import Failure, LeaseLost
from app.sweeping.ledger import claims, failures, runs, transactions
from app.sweeping.scans.batch_size import BatchSizer
from app.sweeping.schedule import microseconds
from app.sweeping.strategy import Run
from app.sweeping.streak import Telling
from tests.support.replica import Replica
from tests.support.rows import column, rows
from tests.support.waiting import HUNG, eventually
from tests.sweeping.runs.looking import (
    LENGTHS,
    MINUTE,
    RUNS,
    SECOND,
    STATE,
    SUMS,
    await_next_second,
    claimed,
    expired,
    now_slot,
    wrapped,
)


def test_a_deleted_lock_stops_the_sweep_which_then_changes_nothing(
    database: str, redis: redis_py.Redis, sql: Connection[Any]
) -> None:
    expired(sql, 5000)
    with (
        ConnectionPool[Connection[Any]](database, kwargs={"autocommit": True}, min_size=0, max_size=2) as pool,
        Replica(pool, redis, lease=timedelta(seconds=6)) as replica,
    ):
        batches = []

        def slow(run: Run, sizer: BatchSizer) -> None:
            batches.append(run)
            sizer.rows = 50
            if len(batches) == 2:
                redis.delete("secrets-bridge:lock:worker:sweeper:wraps-expired")
            if len(batches) >= 2:
                run.cursor.execute("SELECT pg_sleep(0.2)")

        slot = now_slot(sql, MINUTE)
        with pytest.raises(LeaseLost):
            replica.run(wrapped(wraps_expired, slow), WrapsExpired(), slot)
        left = column(sql, "SELECT count(*) FROM secret_wraps")
        assert 0 < 5000 - left[0] < 5000
        (run,) = rows(sql, RUNS)
        assert run["outcome"] == "running"
        assert run["changed"] == 5000 - left[0]

        # The next slot runs, reports what the lost one had done, and finishes the work.
        await_next_second(sql)
        replica.run(wraps_expired, WrapsExpired(interval=SECOND))
        events = replica.events
    first, second = rows(sql, RUNS)
    assert (first["outcome"], second["outcome"]) == ("interrupted", "success")
    assert first["changed"] + second["changed"] == 5000
    assert [dict(event.metadata) for event in events] == [
        {"deleted": first["changed"], "interrupted": 1},
        {"deleted": second["changed"]},
    ]


def test_a_statement_that_runs_when_the_lock_is_lost_is_cut(
    database: str, redis: redis_py.Redis, sql: Connection[Any]
) -> None:
    with (
        ConnectionPool[Connection[Any]](database, kwargs={"autocommit": True}, min_size=0, max_size=2) as pool,
        Replica(pool, redis, lease=timedelta(seconds=6)) as replica,
    ):
        started, slept = threading.Event(), threading.Event()

        def long(run: Run, _sizer: BatchSizer) -> None:
            started.set()
            run.cursor.execute("SET LOCAL statement_timeout = 0")
            run.cursor.execute("SELECT pg_sleep(%s)", [HUNG])
            slept.set()

        def delete_key() -> None:
            assert started.wait(HUNG)
            redis.delete("secrets-bridge:lock:worker:sweeper:wraps-expired")

        threading.Thread(target=delete_key, daemon=True).start()
        with pytest.raises(LeaseLost):
            replica.run(wrapped(wraps_expired, long), WrapsExpired())
        assert not slept.is_set()
    assert rows(sql, STATE) == []


def test_a_paused_run_is_fenced_off_by_its_successor(
    replica: Replica, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    expired(sql, 3000)
    batches = []

    def overtaken(run: Run, sizer: BatchSizer) -> None:
        batches.append(run)
        sizer.rows = 100
        if len(batches) == 1:
            return
        raise AssertionError("the fence let a batch through")

    def overtake(_seconds: float) -> None:
        replica.runner.on_batch = lambda _seconds: None
        redis.flushall()
        await_next_second(sql)
        replica.run(wraps_expired, WrapsExpired(interval=SECOND))

    replica.runner.on_batch = overtake
    with pytest.raises(LeaseLost):
        replica.run(wrapped(wraps_expired, overtaken), WrapsExpired())
    first, second = rows(sql, RUNS)
    assert (first["outcome"], second["outcome"]) == ("interrupted", "success")
    assert 0 < first["changed"] < 3000
    assert second["changed"] == 3000 - first["changed"]


def test_a_run_that_fails_once_its_successor_has_begun_counts_as_run_and_as_failed(sql: Connection[Any]) -> None:
    """Its successor has not covered the slot, so it must not be given back."""
    first = claimed(sql)
    await_next_second(sql)
    second = claimed(sql)
    counted, unreported = failures.fail(sql.cursor(row_factory=dict_row), first, Failure("Boom"), Telling())
    assert counted is not None
    assert (counted.streak.failures, counted.tell, unreported) == (1, True, None)
    assert [(run["outcome"], run["error_class"]) for run in rows(sql, RUNS)] == [
        ("interrupted", "Boom"),
        ("running", None),
    ]
    (state,) = rows(sql, STATE)
    assert microseconds(state["last_slot"]) == second.slot
    (sums,) = rows(sql, SUMS)
    assert sums["span"] == sums["slots"] + sums["covered"]
    assert sums["runs"] == sums["own"]


def test_a_failure_that_is_written_down_and_a_claim_wait_in_the_same_order(database: str, sql: Connection[Any]) -> None:
    """A run that has failed is written down once its lock is free, which is when the next one claims."""
    name, limits = "agents-stale", transactions.Limits.below(MINUTE)
    first = claimed(sql)

    def fail() -> None:
        with psycopg.connect(database) as connection:
            failures.fail(connection.cursor(row_factory=dict_row), first, Failure("Boom"), Telling())

    with psycopg.connect(database, autocommit=True) as connection, ThreadPoolExecutor() as pool:
        with connection.transaction():
            now = transactions.begun(transactions.begin(connection, "agents", "agents", limits)).now
            claim = claims.claimed(claims.claim(connection, name, None, LENGTHS), name, now, None, LENGTHS)
            assert claim is not None
            failing = pool.submit(fail)
            eventually(lambda: column(sql, "SELECT pid FROM pg_locks WHERE NOT granted"))
            opening = runs.open_run(connection, name, claim, worker="x", cutoff=now)
            runs.opened(opening, name, claim, began=now, cutoff=now)
        failing.result(HUNG)
    assert [(run["outcome"], run["error_class"]) for run in rows(sql, RUNS)] == [
        ("interrupted", "Boom"),
        ("running", None),
    ]
