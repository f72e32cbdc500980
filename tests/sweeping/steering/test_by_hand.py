"""A run by hand: its place among the slots, what it leaves behind, and all races of ticks and hands."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import Any

import pytest
import redis as redis_py
from psycopg import Connection
from psycopg_pool import ConnectionPool

from actors.agents_stale import AgentsStale, agents_stale
from actors.wraps_expired import WrapsExpired, wraps_expired
from app.core.errors import LeaseLost, NotDue, Reason, SweepFailed
from app.sweeping import by_hand
from app.sweeping.lock import Refusal, Tick
from app.sweeping.schedule import microseconds, slot_at
from app.sweeping.steering.order import Order
from tests.support.replica import Replica
from tests.support.rows import FIXED, insert_agent, insert_wrap, rows
from tests.support.slots import steady
from tests.support.waiting import HUNG
from tests.sweeping.steering.hand import WHO, hand

RUNS = "SELECT * FROM secrets_bridge_worker.sweep_run ORDER BY id"
STATE = "SELECT * FROM secrets_bridge_worker.sweep_state"
STEADY = steady()
SETTINGS = WrapsExpired(interval=STEADY)
TICK = "{secrets-bridge:lock:worker:sweeper:wraps-expired}:tick"


def now(sql: Connection[Any]) -> int:
    return microseconds(rows(sql, "SELECT now()")[0]["now"])


def current(sql: Connection[Any]) -> int:
    """Return the slot of the steady cadence that is current by the database's clock."""
    return slot_at(now(sql), STEADY)


def back(sql: Connection[Any], slots: float) -> None:
    """Have all that was run have been run so many slots earlier."""
    length = slots * STEADY
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = last_slot - %s", [length])
    sql.execute("UPDATE secrets_bridge_worker.sweep_run SET slot = slot - %s", [length])


def test_its_slot_is_the_moment_at_which_it_begins_and_says_who_asked(replica: Replica, sql: Connection[Any]) -> None:
    insert_wrap(sql, FIXED)
    before = now(sql)
    state = hand(replica, wraps_expired, SETTINGS)
    (run,) = rows(sql, RUNS)
    assert before < microseconds(run["slot"]) <= now(sql)
    assert run["slot"] == run["started_at"]
    assert (run["outcome"], run["changed"], run["requested_by"], run["covered"]) == ("success", 1, WHO, 0)
    assert state.sweep.changed == 1
    assert [event.title for event in replica.events] == ["expired wraps purged"]


def test_a_run_of_a_tick_says_nobody(replica: Replica, sql: Connection[Any]) -> None:
    replica.run(wraps_expired, WrapsExpired())
    assert rows(sql, RUNS)[0]["requested_by"] is None


def test_the_tick_of_its_slot_is_not_run_again_and_the_next_one_is(
    replica: Replica, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    hand(replica, wraps_expired, SETTINGS)
    slot = current(sql)
    assert replica.acquire(wraps_expired, SETTINGS, slot) is Refusal.DONE  # PostgreSQL is not asked
    redis.flushall()
    with pytest.raises(NotDue) as refused:
        replica.run(wraps_expired, SETTINGS, slot)
    assert refused.value.reason is Reason.SUPERSEDED

    back(sql, 1)
    redis.flushall()
    replica.run(wraps_expired, SETTINGS, current(sql))
    run = rows(sql, RUNS)[-1]
    assert (microseconds(run["slot"]), run["covered"]) == (current(sql), 0)


def test_the_mark_in_redis_is_that_of_its_slot_and_of_none_to_come(
    replica: Replica, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    hand(replica, wraps_expired, SETTINGS)
    assert int(redis.get(TICK) or 0) == current(sql)


def test_after_the_tick_of_its_slot_it_runs_all_the_same_as_often_as_it_is_asked_for(
    replica: Replica, sql: Connection[Any]
) -> None:
    replica.run(wraps_expired, SETTINGS, current(sql))
    for _ in range(3):
        hand(replica, wraps_expired, SETTINGS)
    slots = [run["slot"] for run in rows(sql, RUNS)]
    assert slots == sorted(set(slots))
    assert len(slots) == 4


def test_it_covers_the_slots_that_nobody_ran_and_the_next_tick_none_of_them_again(
    replica: Replica, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    replica.run(wraps_expired, SETTINGS, current(sql))
    back(sql, 4)
    redis.flushall()
    assert hand(replica, wraps_expired, SETTINGS).claimed.claim.covered == 3
    back(sql, 3)
    redis.flushall()
    replica.run(wraps_expired, SETTINGS, current(sql))
    assert [run["covered"] for run in rows(sql, RUNS)] == [0, 3, 2]


def test_after_a_slot_that_was_claimed_early_it_gets_the_next_moment(replica: Replica, sql: Connection[Any]) -> None:
    replica.run(wraps_expired, SETTINGS)
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = now() + interval '1 h'")
    (early,) = rows(sql, STATE)
    state = hand(replica, wraps_expired, SETTINGS)
    assert state.claimed.slot == microseconds(early["last_slot"]) + 1
    assert state.claimed.claim.covered == 0


def test_a_clock_that_was_far_ahead_does_not_keep_it(replica: Replica, sql: Connection[Any]) -> None:
    replica.run(wraps_expired, SETTINGS)
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = now() + interval '30 d'")
    state = hand(replica, wraps_expired, SETTINGS)
    assert state.claimed.slot <= now(sql)
    assert microseconds(rows(sql, STATE)[0]["last_slot"]) == state.claimed.slot


@pytest.mark.parametrize("ran_before", [True, False])
def test_one_that_fails_gives_exactly_the_slot_before_back(
    replica: Replica, sql: Connection[Any], redis: redis_py.Redis, ran_before: bool
) -> None:
    settings = AgentsStale(interval=STEADY)
    insert_agent(sql, "old", last_seen_at=FIXED)
    if ran_before:
        replica.run(agents_stale, settings, current(sql))
        back(sql, 1.5)  # not a slot of the cadence
        redis.flushall()
    last = [row["last_slot"] for row in rows(sql, STATE)]
    sql.execute("ALTER TABLE agents ADD CONSTRAINT no CHECK (status <> 'stale') NOT VALID")
    sql.execute("ALTER TABLE agents RENAME COLUMN status TO state")
    with pytest.raises(SweepFailed):
        hand(replica, agents_stale, settings)
    sql.execute("ALTER TABLE agents DROP CONSTRAINT no")
    (failed,) = (run for run in rows(sql, RUNS) if run["outcome"] == "failure")
    assert (failed["requested_by"], failed["sqlstate"]) == (WHO, "42703")
    (state,) = rows(sql, STATE)
    assert [state["last_slot"]] == (last or [rows(sql, "SELECT timestamptz 'epoch' AS never")[0]["never"]])
    sql.execute("ALTER TABLE agents RENAME COLUMN state TO status")
    replica.run(agents_stale, settings, current(sql))  # the tick of its slot is not marked as done
    assert [event.title for event in replica.events if event.title == "flag stale agents failed"] != []


def test_one_that_fails_in_a_later_step_gives_it_back_as_well(replica: Replica, sql: Connection[Any]) -> None:
    replica.run(wraps_expired, SETTINGS, current(sql))
    before = rows(sql, STATE)[0]["last_slot"]
    insert_wrap(sql, FIXED)

    class Unheard(Exception):
        pass

    def fail(_state: object) -> None:
        sql.execute("UPDATE secrets_bridge_worker.sweep_run SET outcome = 'running' WHERE requested_by IS NOT NULL")
        raise Unheard

    replica.runner.on_progress = fail
    with pytest.raises(SweepFailed):
        hand(replica, wraps_expired, SETTINGS)
    assert rows(sql, STATE)[0]["last_slot"] == before


def test_it_waits_for_a_lock_that_is_held_and_says_so_once(replica: Replica) -> None:
    tick = replica.acquire(wraps_expired, WrapsExpired())
    assert isinstance(tick, Tick)
    told: list[None] = []

    def tell() -> None:
        told.append(None)
        replica.locks.release(tick, done=False)

    answer = by_hand.acquire(
        replica.locks,
        wraps_expired,
        WrapsExpired(),
        Order(WHO),
        wait=timedelta(seconds=HUNG),
        on_held=tell,
        stopping=lambda: False,
    )
    assert answer is not None
    assert answer.order == Order(WHO)
    assert len(told) == 1


@pytest.mark.parametrize(("wait", "stops"), [(0.0, False), (HUNG, True)])
def test_it_waits_no_longer_than_it_is_told(replica: Replica, wait: float, stops: bool) -> None:
    assert isinstance(replica.acquire(wraps_expired, WrapsExpired()), Tick)
    answer = by_hand.acquire(
        replica.locks,
        wraps_expired,
        WrapsExpired(),
        Order(WHO),
        wait=timedelta(seconds=wait),
        on_held=lambda: None,
        stopping=lambda: stops,
    )
    assert answer is None


def test_a_missing_table_claims_nothing(replica: Replica, sql: Connection[Any]) -> None:
    sql.execute("ALTER TABLE secret_wraps RENAME TO elsewhere")
    with pytest.raises(NotDue) as refused:
        hand(replica, wraps_expired, WrapsExpired())
    assert refused.value.reason is Reason.TABLE_MISSING
    assert rows(sql, STATE) == []
    assert isinstance(replica.acquire(wraps_expired, WrapsExpired()), Tick)  # its lock is free


#: So short that many slots pass in a test; no setting allows it.
INTERVAL = timedelta(milliseconds=40)
QUICK = WrapsExpired.model_construct(
    interval=INTERVAL, retention=timedelta(0), session_retention=timedelta(0), brake=None
)
ROUNDS = 60


def ticks(replica: Replica) -> None:
    """Run what a scheduler would send, as the middleware does."""
    for _ in range(ROUNDS):
        seconds, micros = replica.redis.time()
        answer = replica.acquire(wraps_expired, QUICK, slot_at(seconds * 1_000_000 + micros, INTERVAL))
        if not isinstance(answer, Tick):
            threading.Event().wait(random.random() * 0.02)
            continue
        try:
            claimed = replica.runner.run(wraps_expired, QUICK, answer).claimed.slot
        except NotDue:
            replica.locks.release(answer, done=True)
        except LeaseLost:
            replica.locks.release(answer, done=False)
        else:
            replica.locks.release(answer, done=True, claimed=claimed)


def hands(replica: Replica) -> None:
    """Run what operators ask for; others may be there at the very moment."""
    for _ in range(ROUNDS):
        with suppress(LeaseLost):
            try:
                hand(replica, wraps_expired, QUICK, wait=HUNG)
            except NotDue as error:
                if error.reason is not Reason.SUPERSEDED:
                    raise


def race(redis: redis_py.Redis, pool: ConnectionPool[Connection[Any]], *, redis_forgets: bool) -> None:
    """Have two schedulers and two operators at work, with a Redis that loses its locks in the middle of runs."""
    works = (ticks, ticks, hands, hands)
    with ExitStack() as stack, ThreadPoolExecutor(len(works)) as threads:
        replicas = [
            stack.enter_context(Replica(pool, redis, lease=timedelta(minutes=1), name=f"test:{number}"))
            for number in range(len(works))
        ]
        futures = [threads.submit(work, each) for work, each in zip(works, replicas, strict=True)]
        while wait(futures, timeout=0.01).not_done:
            if redis_forgets:
                redis.flushall()
        for future in futures:
            future.result()


@pytest.mark.parametrize("redis_forgets", [False, True])
def test_no_slot_is_run_twice_however_ticks_and_hands_meet(
    database: str, redis: redis_py.Redis, sql: Connection[Any], redis_forgets: bool
) -> None:
    with ConnectionPool[Connection[Any]](
        database, kwargs={"autocommit": True}, min_size=0, max_size=8, timeout=HUNG
    ) as pool:
        race(redis, pool, redis_forgets=redis_forgets)
    runs = rows(sql, "SELECT * FROM secrets_bridge_worker.sweep_run WHERE token IS NOT NULL ORDER BY token")
    assert {run["outcome"] for run in runs} <= {"success", "interrupted"}
    done = [run for run in runs if run["outcome"] == "success"]
    assert len([run for run in done if run["requested_by"]]) > ROUNDS / 2
    slots = [microseconds(run["slot"]) for run in runs]
    assert slots == sorted(slots)
    assert len({run["slot"] for run in done}) == len(done)
    # A tick's slot is run before the hands that came in it, or not at all: these have done its work.
    assert [
        late
        for late, early in zip(done[1:], done, strict=False)
        if not late["requested_by"] and slot_at(microseconds(early["slot"]), INTERVAL) >= microseconds(late["slot"])
    ] == []
    ours = {slot_at(slot, INTERVAL) for slot in slots}
    span = (max(ours) - min(ours)) // (INTERVAL // timedelta(microseconds=1)) + 1
    assert span == len(ours) + sum(run["covered"] for run in runs)
