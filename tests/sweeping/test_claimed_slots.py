"""Which slot a run claims: by the database's clock, which was wrong perhaps, and by the cadence of its own process."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import redis as redis_py
from psycopg import Connection
from structlog.testing import capture_logs

from actors.wraps_expired import WrapsExpired, wraps_expired
from app.core.errors import NotDue
from app.sweeping import clocks
from app.sweeping.lock import Tick
from app.sweeping.schedule import microseconds, slot_at
from tests.support.replica import Replica
from tests.support.rows import column, rows
from tests.support.waiting import HUNG, eventually
from tests.sweeping.runs.looking import MINUTE, RUNS, SECOND, STATE, STEADY, expired, now_slot
from tests.sweeping.steering.hand import hand

# How far the newest slot and the beginning of its run are ahead, as parts of an interval; the lease is 0.01 of it.
SET_BACK = "UPDATE secrets_bridge_worker.sweep_run SET slot = %(slot)s, started_at = now() + %(began)s"
_BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"


def test_a_tick_far_ahead_of_the_databases_clock_means_the_newest_slot(replica: Replica, sql: Connection[Any]) -> None:
    """Redis's clock is ahead of PostgreSQL's, so that its tick is."""
    tick = replica.acquire(wraps_expired, WrapsExpired())
    assert isinstance(tick, Tick)
    before = now_slot(sql, MINUTE)
    with capture_logs() as records:
        clocks._reported.clear()
        state = replica.runner.run(wraps_expired, WrapsExpired(), replace(tick, slot=before + 600 * 60_000_000))
    assert before <= state.claimed.slot <= now_slot(sql, MINUTE)
    assert [record["clock"] for record in records if record["event"] == "a clock is, or was, ahead"] == ["redis"]


def test_a_database_clock_that_was_ahead_mutes_nothing(replica: Replica, sql: Connection[Any]) -> None:
    replica.run(wraps_expired, WrapsExpired())
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = last_slot + interval '30 d'")
    sql.execute("UPDATE secrets_bridge_worker.sweep_run SET slot = slot + interval '30 d'")
    expired(sql, 5)
    with capture_logs() as records:
        clocks._reported.clear()
        assert replica.run(wraps_expired, WrapsExpired(interval=SECOND), now_slot(sql, SECOND)).changed == 5
    (record,) = [record for record in records if record["event"] == "a clock is, or was, ahead"]
    assert (record["log_level"], record["clock"]) == ("error", "postgres")
    assert timedelta(days=29) < record["ahead"] < timedelta(days=31)


@pytest.mark.parametrize(("ahead", "runs"), [(0.48, False), (0.83, True), (0.98, True)])
def test_a_newest_slot_further_ahead_than_a_tick_may_be_keeps_no_slot_from_its_run(
    replica: Replica, redis: redis_py.Redis, sql: Connection[Any], ahead: float, runs: bool
) -> None:
    """A tick is half an interval early at most; what is more was claimed by a clock that was ahead."""
    steady = WrapsExpired(interval=STEADY)
    replica.run(wraps_expired, steady)
    redis.flushall()
    sql.execute("UPDATE secrets_bridge_worker.sweep_run SET slot = now() + %s", [ahead * STEADY])
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = now() + %s", [ahead * STEADY])
    if runs:
        replica.run(wraps_expired, steady)
        assert [run["outcome"] for run in rows(sql, RUNS)] == ["interrupted", "success"]
    else:
        with pytest.raises(NotDue):
            replica.run(wraps_expired, steady)


def test_what_a_clock_ahead_has_run_is_run_again_when_its_time_has_come(replica: Replica, sql: Connection[Any]) -> None:
    """A clock was far ahead for long: it has run the slot of this moment, and all behind it."""
    steady = WrapsExpired(interval=STEADY)
    replica.run(wraps_expired, steady)
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = last_slot + %s", [60 * STEADY])
    slot = now_slot(sql, steady.interval)
    sql.execute(
        "INSERT INTO secrets_bridge_worker.sweep_run (name, slot, worker, started_at, outcome) SELECT 'wraps-expired',"
        " to_timestamp(%s / 1e6) + n * %s, 'x', now(), 'success' FROM generate_series(1, 60) AS n",
        [slot, STEADY],
    )
    replica.redis.flushall()
    with pytest.raises(NotDue):  # this very slot was run
        replica.run(wraps_expired, steady)

    for _ in range(3):  # the next ones are not: time goes on
        sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = last_slot - %s", [STEADY])
        sql.execute(
            "UPDATE secrets_bridge_worker.sweep_run SET slot = slot - id * %s WHERE outcome = 'success'"
            " AND slot = (SELECT max(slot) FROM secrets_bridge_worker.sweep_run WHERE outcome = 'success')",
            [STEADY],
        )
        replica.redis.flushall()
        replica.run(wraps_expired, steady)
    outcomes = column(sql, "SELECT outcome FROM secrets_bridge_worker.sweep_run ORDER BY id")
    assert (outcomes.count("success"), outcomes.count("interrupted")) == (4, 60)


def test_a_tick_a_little_ahead_is_run(replica: Replica, sql: Connection[Any]) -> None:
    row = sql.execute("SELECT now()").fetchone()
    assert row is not None
    now = microseconds(row[0])
    # An interval of about ten minutes, three quarters of whose current slot are over.
    interval = timedelta(microseconds=4 * now // (4 * (now // 600_000_000) + 3))
    slot = slot_at(now, interval) + interval // timedelta(microseconds=1)
    replica.run(wraps_expired, WrapsExpired(interval=interval), slot)
    assert microseconds(rows(sql, RUNS)[0]["slot"]) == slot


@pytest.mark.parametrize(
    ("slot", "began", "again"),
    [
        (0.2, 0.2, True),  # the clock was ahead by more than a lease
        (0.2, 0.015, True),
        (0.2, 0.0, False),  # the tick was early
        (0.2, 0.005, False),  # a lease more to wait is no more than after any fault
        (0.005, 0.02, False),
    ],
)
def test_a_run_of_a_clock_that_was_ahead_by_more_than_a_lease_keeps_none_from_being_run(
    replica: Replica, sql: Connection[Any], slot: float, began: float, again: bool
) -> None:
    """Else the next one would come by that later, on top of its interval."""
    slow = WrapsExpired(interval=replica.runner.lease * 100)
    replica.run(wraps_expired, slow)
    now = column(sql, "SELECT now()")[0]
    ahead = {"slot": now + slow.tick * slot, "began": slow.tick * began}
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = %(slot)s", ahead)
    sql.execute(SET_BACK, ahead)
    replica.redis.flushall()
    if again:
        replica.run(wraps_expired, slow)
        assert [run["outcome"] for run in rows(sql, RUNS)] == ["interrupted", "success"]
        assert rows(sql, STATE)[0]["last_slot"] <= now
    else:
        with pytest.raises(NotDue):
            replica.run(wraps_expired, slow)
        assert [run["outcome"] for run in rows(sql, RUNS)] == ["success"]


def test_a_run_by_hand_is_of_this_moment_where_a_clock_was_ahead(replica: Replica, sql: Connection[Any]) -> None:
    slow = WrapsExpired(interval=replica.runner.lease * 100)
    replica.run(wraps_expired, slow)
    now = column(sql, "SELECT now()")[0]
    ahead = {"slot": now + slow.tick * 0.2, "began": slow.tick * 0.2}
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = %(slot)s", ahead)
    sql.execute(SET_BACK, ahead)
    hand(replica, wraps_expired, slow)
    assert now <= rows(sql, RUNS)[-1]["slot"] < ahead["slot"]


def test_what_another_claims_by_a_clock_ahead_in_the_meantime_is_put_right_too(
    replica: Replica, sql: Connection[Any], owner_database: str
) -> None:
    """It waits for the fence with an older view of it: what it then finds there is new to it."""
    steady = WrapsExpired(interval=STEADY)
    replica.run(wraps_expired, steady)
    sql.execute("UPDATE secrets_bridge_worker.sweep_run SET slot = slot - %s", [STEADY])
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = last_slot - %s", [STEADY])
    replica.redis.flushall()
    with psycopg.connect(owner_database) as other:
        other.execute(
            "UPDATE secrets_bridge_worker.sweep_state"
            " SET token = token + 1, previous_slot = last_slot, last_slot = last_slot + interval '30 d'"
        )
        other.execute(
            "INSERT INTO secrets_bridge_worker.sweep_run (name, slot, token, worker, started_at, finished_at, outcome)"
            " SELECT name, last_slot, token, 'x', now(), now(), 'success' FROM secrets_bridge_worker.sweep_state"
        )
        run = threading.Thread(target=replica.run, args=(wraps_expired, steady))
        run.start()
        eventually(lambda: column(sql, _BLOCKED) == [1])
        other.commit()
        run.join(HUNG)
    assert [run["outcome"] for run in rows(sql, RUNS)] == ["success", "interrupted", "success"]


def test_a_tick_of_another_cadence_stands_for_the_slot_of_ours_that_it_lies_in(
    replica: Replica, sql: Connection[Any]
) -> None:
    """Schedulers and workers get a new interval one after the other."""
    steady = WrapsExpired(interval=STEADY)
    row = sql.execute("SELECT now()").fetchone()
    assert row is not None
    tick = replica.acquire(wraps_expired, steady)
    assert isinstance(tick, Tick)
    soon = slot_at(microseconds(row[0]), SECOND) + 7_000_000
    replica.runner.run(wraps_expired, steady, replace(tick, slot=soon))
    (slot,) = column(sql, "SELECT slot FROM secrets_bridge_worker.sweep_run")
    assert microseconds(slot) == now_slot(sql, STEADY)


def test_a_slot_of_another_cadence_is_what_stands_when_the_next_one_is_given_back(
    replica: Replica, sql: Connection[Any]
) -> None:
    steady = WrapsExpired(interval=STEADY)
    replica.run(wraps_expired, steady)
    for table, column_ in (("sweep_run", "slot"), ("sweep_state", "last_slot")):
        query = f"UPDATE secrets_bridge_worker.{table} SET {column_} = {column_} - interval '7 s'"
        sql.execute(query.encode())
    replica.redis.flushall()
    replica.run(wraps_expired, steady)
    (state,) = rows(sql, STATE)
    assert state["last_slot"] - state["previous_slot"] == timedelta(seconds=7)
