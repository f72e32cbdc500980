"""A slot is claimed once, and leaves one row in the ledger."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import redis as redis_py
from psycopg import Connection

from actors.wraps_expired import WrapsExpired, wraps_expired
from app.core.errors import NotDue, Reason
from app.core.events import Severity
from app.sweeping.lock import Tick
from app.sweeping.schedule import microseconds
from tests.support.replica import Replica
from tests.support.rows import rows
from tests.sweeping.runs.looking import (
    MINUTE,
    PAST,
    RUNS,
    SECOND,
    STATE,
    STEADY,
    await_next_second,
    expired,
    now_slot,
)


def test_a_run_leaves_one_row_in_the_ledger_and_one_event(replica: Replica, sql: Connection[Any]) -> None:
    expired(sql, 1200)
    slot = now_slot(sql, STEADY)

    sweep = replica.run(wraps_expired, WrapsExpired(interval=STEADY), slot)

    (run,) = rows(sql, RUNS)
    assert sweep.changed == 1200
    assert (run["outcome"], run["changed"], run["token"], run["covered"]) == ("success", 1200, 1, 0)
    assert run["batches"] >= 2
    assert not run["handed_over"]
    (event,) = replica.events
    assert (event.severity, event.title, dict(event.metadata)) == (
        Severity.INFO,
        "expired wraps purged",
        {"deleted": 1200},
    )


def test_an_idle_run_is_one_transaction_and_no_event(replica: Replica, sql: Connection[Any]) -> None:
    replica.run(wraps_expired, WrapsExpired())
    (run,) = rows(sql, RUNS)
    assert (run["outcome"], run["batches"]) == ("success", 1)
    assert replica.events == []


def test_a_slot_is_claimed_once_even_when_redis_forgot_it(
    replica: Replica, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    slot = now_slot(sql, STEADY)
    replica.run(wraps_expired, WrapsExpired(interval=STEADY), slot)
    redis.flushall()
    with pytest.raises(NotDue) as refused:
        replica.run(wraps_expired, WrapsExpired(interval=STEADY), slot)
    assert refused.value.reason is Reason.SUPERSEDED
    assert len(rows(sql, RUNS)) == 1


def test_the_ledger_itself_refuses_a_second_run_of_a_slot(replica: Replica, sql: Connection[Any]) -> None:
    replica.run(wraps_expired, WrapsExpired())
    with pytest.raises(psycopg.errors.UniqueViolation):
        sql.execute(
            "INSERT INTO secrets_bridge_worker.sweep_run (name, slot, worker, started_at, outcome)"
            " SELECT name, slot, 'another', now(), 'running' FROM secrets_bridge_worker.sweep_run"
        )


def test_a_late_tick_runs_the_newest_due_slot_and_covers_the_missed_ones(
    replica: Replica, sql: Connection[Any]
) -> None:
    second = WrapsExpired(interval=timedelta(seconds=1))
    replica.run(wraps_expired, second, now_slot(sql, second.interval))
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = last_slot - interval '10 s'")
    sql.execute("UPDATE secrets_bridge_worker.sweep_run SET slot = slot - interval '10 s'")
    late = now_slot(sql, second.interval) - 8_000_000

    tick = replica.locks.acquire("wraps-expired", slot=None, sent=None, interval=MINUTE)
    assert isinstance(tick, Tick)
    replica.runner.run(wraps_expired, second, replace(tick, slot=late))

    run = rows(sql, RUNS)[-1]
    assert run["slot"] > PAST
    assert microseconds(run["slot"]) > late
    assert run["covered"] >= 8


def test_changing_the_interval_does_not_stop_the_slots(replica: Replica, sql: Connection[Any]) -> None:
    replica.run(wraps_expired, WrapsExpired(interval=MINUTE))
    await_next_second(sql)
    replica.run(wraps_expired, WrapsExpired(interval=SECOND))
    assert len(rows(sql, RUNS)) == 2


def test_a_missing_table_rests_the_sweeper_and_nothing_is_claimed(replica: Replica, sql: Connection[Any]) -> None:
    sql.execute("ALTER TABLE secret_wraps RENAME TO elsewhere")
    with pytest.raises(NotDue) as refused:
        replica.run(wraps_expired, WrapsExpired())
    assert refused.value.reason is Reason.TABLE_MISSING
    assert rows(sql, STATE) == []
    sql.execute("ALTER TABLE elsewhere RENAME TO secret_wraps")
    replica.run(wraps_expired, WrapsExpired())
    assert rows(sql, RUNS)[0]["outcome"] == "success"
