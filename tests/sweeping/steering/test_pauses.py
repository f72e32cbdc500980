"""Pauses: what they keep from beginning, for how long, and what they leave."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import redis as redis_py
from psycopg import Connection
from psycopg_pool import ConnectionPool

from actors.wraps_expired import wraps_expired
from app.core.errors import NotDue, Reason
from app.overview.gauges import FleetGauges
from app.overview.model import State
from app.overview.sources.standings import Watched
from app.overview.watch import FleetWatch
from app.sweeping import lock
from app.sweeping.actor import SweepActor
from app.sweeping.lock import Refusal, Tick
from app.sweeping.steering import pauses
from tests.support.replica import Replica
from tests.support.rights.acl import as_user
from tests.support.rows import FIXED, column, insert_wrap, rows
from tests.sweeping.steering.hand import hand
from tests.sweeping.steering.test_by_hand import RUNS, SETTINGS, STATE, back, current

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
NAME = "wraps-expired"
PAUSES = "SELECT * FROM secrets_bridge_worker.sweeper_pause ORDER BY id"


def pause(sql: Connection[Any], length: timedelta = HOUR, name: str = NAME) -> None:
    (made,) = pauses.pause(sql, [name], length, "operator@desk", "the import of team blue")
    assert made.until - made.began_at == length


def paused(replica: Replica, sql: Connection[Any]) -> bool:
    """Return whether the current tick finds its sweeper paused."""
    try:
        replica.run(wraps_expired, SETTINGS, current(sql))
    except NotDue as error:
        if error.reason is Reason.PAUSED:
            return True
        raise
    return False


def test_no_run_begins_and_nothing_is_claimed(replica: Replica, sql: Connection[Any]) -> None:
    pause(sql)
    assert paused(replica, sql)
    assert (rows(sql, STATE), rows(sql, RUNS)) == ([], [])


def test_another_sweepers_pause_is_none(replica: Replica, sql: Connection[Any]) -> None:
    pause(sql, name="agents-stale")
    assert not paused(replica, sql)


def test_a_run_that_has_begun_goes_on(replica: Replica, sql: Connection[Any]) -> None:
    sql.execute(
        "INSERT INTO secret_wraps (encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash, byte_length,"
        " expires_at) SELECT '\\x01', '\\x02', '\\x03', 'k', '\\x04', 1, '2026-01-01' FROM generate_series(1, 1200)"
    )
    replica.runner.on_batch = lambda _seconds: None if pauses.current(sql) else pause(sql)
    assert replica.run(wraps_expired, SETTINGS).changed == 1200
    assert rows(sql, RUNS)[0]["batches"] > 1


def test_the_mark_keeps_other_replicas_from_asking_and_the_next_tick_after_it_runs_and_covers(
    replica: Replica, sql: Connection[Any]
) -> None:
    replica.run(wraps_expired, SETTINGS, current(sql))
    back(sql, 3)
    replica.redis.flushall()
    pause(sql)
    slot = current(sql)
    tick = replica.acquire(wraps_expired, SETTINGS, slot)
    assert isinstance(tick, Tick)
    token = lock.current.set(tick)
    outcome = SweepActor(replica.runner, wraps_expired, SETTINGS).run()
    lock.current.reset(token)
    replica.locks.release(tick, done=outcome.done, claimed=outcome.claimed)
    assert replica.acquire(wraps_expired, SETTINGS, slot) is Refusal.DONE

    assert pauses.resume(sql, [NAME], "another@desk") == [NAME]
    replica.redis.flushall()  # as if it were the next slot
    replica.run(wraps_expired, SETTINGS, slot)
    assert rows(sql, RUNS)[-1]["covered"] == 2
    assert rows(sql, PAUSES)[0]["resumed_by"] == "another@desk"


def test_it_ends_by_itself(replica: Replica, sql: Connection[Any]) -> None:
    pause(sql)
    sql.execute("UPDATE secrets_bridge_worker.sweeper_pause SET until = now() + interval '200 ms'")
    sql.execute("SELECT pg_sleep_until((SELECT until FROM secrets_bridge_worker.sweeper_pause))")
    assert not paused(replica, sql)


def test_one_that_reaches_further_than_any_can_is_from_a_clock_that_was_ahead(
    replica: Replica, sql: Connection[Any]
) -> None:
    pause(sql)
    sql.execute("UPDATE secrets_bridge_worker.sweeper_pause SET until = now() + interval '31 d'")
    assert pauses.current(sql) == {}
    assert not paused(replica, sql)


def test_a_run_by_hand_may_be_made_all_the_same(replica: Replica, sql: Connection[Any]) -> None:
    insert_wrap(sql, FIXED)
    pause(sql)
    with pytest.raises(NotDue) as refused:
        hand(replica, wraps_expired, SETTINGS)
    assert refused.value.reason is Reason.PAUSED
    assert hand(replica, wraps_expired, SETTINGS, despite_pause=True).sweep.changed == 1
    assert len(rows(sql, RUNS)) == 1


def test_another_pause_takes_the_place_of_the_first_and_the_history_stays(sql: Connection[Any]) -> None:
    pause(sql)
    pause(sql, MINUTE)
    first, second = rows(sql, PAUSES)
    assert first["resumed_at"] is not None
    assert second["resumed_at"] is None
    assert pauses.current(sql)[NAME].until == second["until"]
    assert pauses.resume(sql, [NAME], "x") == [NAME]
    assert pauses.resume(sql, [NAME], "x") == []
    assert len(rows(sql, PAUSES)) == 2


def test_old_ones_are_pruned_with_the_ledger_and_no_others(replica: Replica, sql: Connection[Any]) -> None:
    ages = {"over long ago": ("-9 d", None), "resumed long ago": ("1 d", "-8 d"), "over": ("-6 d", None)}
    for reason, (until, resumed) in {**ages, "holds": ("1 h", None)}.items():
        sql.execute(
            "INSERT INTO secrets_bridge_worker.sweeper_pause (name, began_at, until, paused_by, reason, resumed_at)"
            " VALUES (%s, now() - interval '20 d', now() + %s::interval, 'x', %s, now() + %s::interval)",
            [NAME, until, reason, resumed],
        )
    hand(replica, wraps_expired, SETTINGS, despite_pause=True)
    assert column(sql, "SELECT reason FROM secrets_bridge_worker.sweeper_pause ORDER BY id") == ["over", "holds"]


@pytest.fixture
def pool(database: str) -> Iterator[ConnectionPool[Connection[Any]]]:
    with ConnectionPool[Connection[Any]](
        database, kwargs={"autocommit": True}, min_size=0, max_size=1, timeout=5, open=True
    ) as pool:
        yield pool


def behind(pool: ConnectionPool[Connection[Any]], redis: redis_py.Redis) -> float:
    """Return by how much the sweeper is overdue."""
    watched = [Watched(NAME, "secret_wraps", MINUTE)]
    watch = FleetWatch(pool, as_user(redis), watched, namespace="secrets-bridge", retention=MINUTE)
    watch.look()
    return watch.behind(NAME)


def test_what_is_paused_is_not_overdue_and_what_was_only_since_its_end(
    pool: ConnectionPool[Connection[Any]], sql: Connection[Any], redis: redis_py.Redis
) -> None:
    sql.execute(
        "INSERT INTO secrets_bridge_worker.sweep_state (name, last_slot, previous_slot, token)"
        " VALUES (%s, now() - interval '5 h', 'epoch', 1)",
        [NAME],
    )
    assert behind(pool, redis) > 17_000
    pause(sql)
    assert behind(pool, redis) == 0
    pauses.resume(sql, [NAME], "x")
    assert behind(pool, redis) == 0
    sql.execute("UPDATE secrets_bridge_worker.sweeper_pause SET resumed_at = now() - interval '10 min'")
    assert 530 < behind(pool, redis) < 600
    sql.execute("UPDATE secrets_bridge_worker.sweeper_pause SET resumed_at = now() - interval '9 h'")
    assert behind(pool, redis) > 17_000


def made_ahead(sql: Connection[Any], ahead: str, length: str = "2 h") -> None:
    """Insert a pause as it was made while the clock was so far ahead."""
    sql.execute(
        "INSERT INTO secrets_bridge_worker.sweeper_pause (name, began_at, until, paused_by, reason)"
        " VALUES (%(name)s, now() + %(ahead)s::interval, now() + %(ahead)s::interval + %(length)s::interval, 'x', 'y')",
        {"name": NAME, "ahead": ahead, "length": length},
    )


@pytest.mark.parametrize("ahead", ["2 min", "1 d", "40 d"])
def test_one_that_was_made_by_a_clock_that_was_ahead_holds_for_nobody_and_the_next_run_closes_it(
    replica: Replica, sql: Connection[Any], pool: ConnectionPool[Connection[Any]], redis: redis_py.Redis, ahead: str
) -> None:
    made_ahead(sql, ahead)
    assert pauses.current(sql) == {}
    watch = FleetWatch(
        pool, as_user(redis), [Watched(NAME, "secret_wraps", HOUR)], namespace="secrets-bridge", retention=MINUTE
    )
    watch.look()
    assert watch.seen.standings[NAME].state is State.ON
    assert not paused(replica, sql)
    assert rows(sql, PAUSES)[0]["resumed_at"] is not None


def test_a_pause_of_another_moments_clock_is_never_shown_as_less_than_none(
    sql: Connection[Any], pool: ConnectionPool[Connection[Any]], redis: redis_py.Redis
) -> None:
    made_ahead(sql, "30 s")
    watch = FleetWatch(
        pool, as_user(redis), [Watched(NAME, "secret_wraps", HOUR)], namespace="secrets-bridge", retention=MINUTE
    )
    watch.look()
    (family,) = [one for one in FleetGauges(watch).collect() if one.name == "worker_sweep_paused_seconds"]
    assert (watch.seen.standings[NAME].state, family.samples[0].value) == (State.PAUSED, 0)


def test_resume_closes_whatever_is_open_and_says_so_of_what_lies_ahead(sql: Connection[Any]) -> None:
    made_ahead(sql, "-1 d")
    assert pauses.resume(sql, [NAME], "x") == []
    assert [(row["resumed_by"], row["resumed_at"] == row["until"]) for row in rows(sql, PAUSES)] == [(None, True)]
    made_ahead(sql, "40 d")
    made_ahead(sql, "-1 h", "60 d")
    assert pauses.resume(sql, [NAME], "x") == [NAME]
    assert [row["id"] for row in rows(sql, PAUSES) if row["resumed_at"] is None] == []


def test_the_longest_pause_holds_for_a_claim_whose_transaction_began_just_before_it(
    database: str, sql: Connection[Any]
) -> None:
    with psycopg.connect(database) as claiming:
        claiming.execute("SELECT now()")
        pause(sql, pauses.LONGEST)
        holding = f"SELECT count(*) FROM secrets_bridge_worker.sweeper_pause WHERE {pauses.HOLDS}"
        assert claiming.execute(holding).fetchone() == (1,)


@pytest.mark.parametrize("what", ["resumed", "approved"])
def test_what_ended_by_a_clock_that_was_ahead_does_not_put_off_what_is_owed(
    pool: ConnectionPool[Connection[Any]], sql: Connection[Any], redis: redis_py.Redis, what: str
) -> None:
    sql.execute(
        "INSERT INTO secrets_bridge_worker.sweep_state (name, last_slot, previous_slot, token, approved_at)"
        " VALUES (%s, now() - interval '5 h', 'epoch', 1, now() + %s::interval)",
        [NAME, "23 h" if what == "approved" else None],
    )
    if what == "resumed":
        made_ahead(sql, "-1 h", "2 d")
        sql.execute("UPDATE secrets_bridge_worker.sweeper_pause SET resumed_at = now() + interval '23 h'")
    assert behind(pool, redis) > 17_000
