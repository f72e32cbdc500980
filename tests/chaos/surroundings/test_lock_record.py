"""The record of locks: what real scripts do to them, as a real Redis tells it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
import redis as redis_py

from app.sweeping.lock import Locks, Tick, lock_key
from tests.chaos.surroundings.lock_record import LockRecord
from tests.support.rights.acl import GrantedRedis
from tests.support.waiting import eventually

LEASE = timedelta(seconds=20)
NAME = "wraps-expired"


@pytest.fixture
def record(redis: redis_py.Redis, redis_server: GrantedRedis) -> Iterator[LockRecord]:
    del redis  # which empties it
    with LockRecord(redis_server.owner_url()) as listening:
        yield listening


@pytest.fixture
def locks(redis: redis_py.Redis) -> Locks:
    return Locks(redis, namespace="secrets-bridge", lease=LEASE)


def taken(locks: Locks) -> Tick:
    tick = locks.acquire(NAME, slot=None, sent=None, interval=LEASE)
    assert isinstance(tick, Tick)
    return tick


def told(record: LockRecord, number: int) -> list[tuple[str, str]]:
    eventually(lambda: len(record.steps) >= number)
    return [(step.what, step.token) for step in record.steps]


def test_a_lock_is_taken_renewed_and_released_by_its_token(record: LockRecord, locks: Locks) -> None:
    tick = taken(locks)
    assert locks.renew(tick.lease)
    locks.release(tick, done=True)

    token = tick.lease.token
    assert told(record, 3) == [("taken", token), ("renewed", token), ("released", token)]
    assert {(step.name, step.segment) for step in record.steps} == {(NAME, 1)}
    assert record.steps[0].lease == LEASE


def test_who_does_not_hold_it_does_nothing(record: LockRecord, locks: Locks, redis: redis_py.Redis) -> None:
    robbed = taken(locks)
    redis.delete(lock_key("secrets-bridge", NAME))
    other = taken(locks)
    assert not locks.renew(robbed.lease)
    locks.release(robbed, done=True)
    locks.release(other, done=False)

    token = other.lease.token
    assert told(record, 4) == [("taken", robbed.lease.token), ("by hand", ""), ("taken", token), ("released", token)]


def test_what_makes_the_past_unknown_begins_a_segment(record: LockRecord, locks: Locks, redis: redis_py.Redis) -> None:
    taken(locks)
    redis.flushall()
    taken(locks)
    told(record, 2)
    monitor = next(client for client in redis.client_list() if "O" in client["flags"])
    redis.client_kill_filter(_id=monitor["id"])
    eventually(lambda: any("O" in client["flags"] for client in redis.client_list()))
    redis.delete(lock_key("secrets-bridge", NAME))

    assert told(record, 3)[2] == ("by hand", "")
    assert [step.segment for step in record.steps] == [1, 2, 3]
