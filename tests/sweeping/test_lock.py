"""The Redis lock, on every kind of Redis that is here, against a stranger who follows the published rules."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
import redis

from app.core.errors import LeaseLost
from app.demo.servers import Redis
from app.sweeping.lock import FAILED, Locks, Refusal, RunOutcome, Tick
from tests.support.waiting import eventually

NAME = "wraps-expired"
KEY = "secrets-bridge:lock:worker:sweeper:wraps-expired"
TICK = "secrets-bridge:tick:worker:sweeper:wraps-expired"
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
HOUR_US = 3_600_000_000


@pytest.fixture
def client(any_redis_server: Redis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(any_redis_server.url()) as connected:
        connected.flushall()
        yield connected


def locks(client: redis.Redis, lease: float = 15.0, *, renewing: bool = False) -> Locks:
    locks = Locks(client, namespace="secrets-bridge", lease=timedelta(seconds=lease))
    if renewing:
        locks.start()
    return locks


def server_slot(client: redis.Redis) -> int:
    """Return the hour that is current by the server's clock."""
    seconds, _ = client.time()
    return (seconds - seconds % 3600) * 1_000_000


def acquired(answer: Tick | Refusal) -> Tick:
    assert isinstance(answer, Tick), answer
    return answer


def done(slot: int) -> RunOutcome:
    return RunOutcome(finished=slot, streak="succeeded")


def test_key_token_and_ttl_are_those_of_the_go_worker(client: redis.Redis) -> None:
    client.set("before", "", px=15_000)
    lease = acquired(locks(client).acquire(NAME, slot=None, sent=None, interval=MINUTE)).lease
    client.set("after", "", px=15_000)
    value = client.get(KEY)
    assert isinstance(value, bytes)
    assert re.fullmatch(rb"[0-9a-f]{32}", value)
    assert value.decode() == lease.token
    with client.pipeline() as at_one_moment:
        for key in ("before", KEY, "after"):
            at_one_moment.pttl(key)
        before, ours, after = at_one_moment.execute()
    assert before <= ours <= after  # so it is 15 s too


def test_a_strangers_lock_holds_us_off_and_ours_holds_the_stranger_off(client: redis.Redis) -> None:
    client.set(KEY, "f" * 32, nx=True, px=60_000)
    mine = locks(client)
    assert mine.acquire(NAME, slot=1, sent=None, interval=MINUTE) is Refusal.HELD
    assert client.get(KEY) == b"f" * 32

    client.delete(KEY)
    lease = acquired(mine.acquire(NAME, slot=1, sent=None, interval=MINUTE)).lease
    assert client.set(KEY, "f" * 32, nx=True, px=60_000) is None
    mine.release(lease)
    assert client.set(KEY, "f" * 32, nx=True, px=60_000) is True


def test_a_lock_that_is_no_longer_ours_is_not_released(client: redis.Redis) -> None:
    mine = locks(client)
    lease = acquired(mine.acquire(NAME, slot=1, sent=None, interval=MINUTE)).lease
    client.set(KEY, "f" * 32, px=60_000)
    mine.release(lease)
    assert client.get(KEY) == b"f" * 32


def test_two_of_ours_exclude_each_other(client: redis.Redis) -> None:
    first, second = locks(client), locks(client)
    lease = acquired(first.acquire(NAME, slot=1, sent=None, interval=MINUTE)).lease
    assert second.acquire(NAME, slot=1, sent=None, interval=MINUTE) is Refusal.HELD
    first.release(lease)
    assert isinstance(second.acquire(NAME, slot=1, sent=None, interval=MINUTE), Tick)


def test_a_finished_slot_and_all_before_it_are_done(client: redis.Redis) -> None:
    now = server_slot(client)
    mine = locks(client)
    lease = acquired(mine.acquire(NAME, slot=now, sent=None, interval=HOUR)).lease
    mine.release(lease, done(now))
    for slot in (now - HOUR_US, now):
        assert mine.acquire(NAME, slot=slot, sent=None, interval=HOUR) is Refusal.DONE
    assert isinstance(mine.acquire(NAME, slot=now + 1, sent=None, interval=HOUR), Tick)


def test_a_scheduler_whose_clock_is_behind_is_not_held_off_by_its_own_runs(client: redis.Redis) -> None:
    """Its tick of an old slot makes the current slot run; its next tick is older than that slot too."""
    now = server_slot(client)
    mine = locks(client)
    lease = acquired(mine.acquire(NAME, slot=now - 5 * HOUR_US, sent=None, interval=HOUR)).lease
    mine.release(lease, done(now - HOUR_US))  # what was current when the run before this one began
    assert isinstance(mine.acquire(NAME, slot=now - 4 * HOUR_US, sent=None, interval=HOUR), Tick)


def test_the_mark_never_goes_back(client: redis.Redis) -> None:
    mine = locks(client)
    for slot in (9, 3):
        client.delete(KEY)
        lease = acquired(mine.acquire(NAME, slot=None, sent=None, interval=MINUTE)).lease
        mine.release(lease, done(slot))
    assert client.get(TICK) == b"9"


def test_neighbouring_microseconds_are_told_apart(client: redis.Redis) -> None:
    slot = 4_000_000_000_000_001  # in the year 2096, and odd
    mine = locks(client)
    lease = acquired(mine.acquire(NAME, slot=slot, sent=None, interval=MINUTE)).lease
    mine.release(lease, done(slot))
    assert mine.acquire(NAME, slot=slot, sent=None, interval=MINUTE) is Refusal.DONE
    assert isinstance(mine.acquire(NAME, slot=slot + 1, sent=None, interval=MINUTE), Tick)


def test_a_tick_older_than_its_interval_is_stale_by_the_servers_clock(client: redis.Redis) -> None:
    seconds, micros = client.time()
    now = seconds * 1_000_000 + micros
    mine = locks(client)
    old = now - 61_000_000
    assert mine.acquire(NAME, slot=1, sent=old, interval=MINUTE) is Refusal.STALE
    assert isinstance(mine.acquire(NAME, slot=1, sent=now, interval=MINUTE), Tick)


def test_failures_are_counted_until_a_success(client: redis.Redis) -> None:
    mine, streaks = locks(client), []
    for outcome in ("failed", "failed", "succeeded", "failed"):
        tick = acquired(mine.acquire(NAME, slot=None, sent=None, interval=MINUTE))
        streaks.append(tick.streak)
        mine.release(tick.lease, FAILED if outcome == "failed" else done(1))
    assert streaks == [0, 1, 2, 0]


def test_an_acquire_whose_reply_was_lost_is_ours(client: redis.Redis) -> None:
    mine = locks(client)
    script = mine._acquire
    calls = []

    def unreliable(**words: object) -> object:
        calls.append(words["args"])
        answer = script(**words)  # type: ignore[arg-type]
        if len(calls) == 1:
            raise redis.ConnectionError("the reply was lost")
        return answer

    mine._acquire = unreliable  # type: ignore[assignment]
    assert isinstance(mine.acquire(NAME, slot=1, sent=None, interval=MINUTE), Tick)
    assert calls[0] == calls[1]


def test_a_held_lock_is_renewed_past_its_lease(client: redis.Redis) -> None:
    mine = locks(client, 3, renewing=True)
    lease = acquired(mine.acquire(NAME, slot=1, sent=None, interval=MINUTE)).lease
    for _ in range(4):  # each is due after a third of the lease
        client.pexpire(KEY, 600_000)
        eventually(lambda: client.pttl(KEY) <= 3_000)  # which only a renewal sets
        eventually(lambda: not lease.lost)
        assert client.get(KEY) == lease.token.encode()
    mine.release(lease)
    assert client.get(KEY) is None


def test_a_deleted_lock_is_noticed_at_the_next_renewal(client: redis.Redis) -> None:
    mine = locks(client, 0.9, renewing=True)
    lease = acquired(mine.acquire(NAME, slot=1, sent=None, interval=MINUTE)).lease
    client.delete(KEY)
    eventually(lease._lost.is_set)  # which the end of the lease alone does not do
    with pytest.raises(LeaseLost):
        lease.check()


def test_a_lock_that_could_not_be_renewed_is_lost_when_its_lease_is_over(
    any_redis_server: Redis, client: redis.Redis
) -> None:
    mine = locks(client, 0.6, renewing=True)
    lease = acquired(mine.acquire(NAME, slot=1, sent=None, interval=MINUTE)).lease
    any_redis_server.kill()
    try:
        eventually(lease._lost.is_set)
        assert time.monotonic() >= lease.deadline  # and not before
    finally:
        any_redis_server.start()


def test_a_paused_process_knows_by_its_own_clock_that_it_lost(client: redis.Redis) -> None:
    mine = locks(client, 60)  # no keeper: as if paused
    lease = acquired(mine.acquire(NAME, slot=1, sent=None, interval=MINUTE)).lease
    lease.check()
    lease.extend(time.monotonic() - 60, MINUTE)  # its last renewal was a lease ago
    with pytest.raises(LeaseLost):
        lease.check()
