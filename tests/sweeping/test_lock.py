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
from app.sweeping.lock import Lease, Locks, Refusal
from tests.support.world import eventually

NAME = "wraps-expired"
KEY = "secrets-bridge:lock:worker:sweeper:wraps-expired"
TICK = "secrets-bridge:tick:worker:sweeper:wraps-expired"
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
HOUR_US = 3_600_000_000


@pytest.fixture
def client(any_redis_server: Redis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(any_redis_server.url()) as one:
        one.flushall()
        yield one


def locks(client: redis.Redis, lease: float = 15.0, *, renewing: bool = False) -> Locks:
    made = Locks(client, namespace="secrets-bridge", lease=timedelta(seconds=lease))
    if renewing:
        made.start()
    return made


def server_slot(client: redis.Redis) -> int:
    """Give the hour that is current by the server's clock."""
    seconds, _ = client.time()
    return (seconds - seconds % 3600) * 1_000_000


def taken(answer: Lease | Refusal) -> Lease:
    assert isinstance(answer, Lease), answer
    return answer


def test_key_token_and_ttl_are_those_of_the_go_worker(client: redis.Redis) -> None:
    lease = taken(locks(client).acquire(NAME, slot=None, sent=None, interval=MINUTE))
    value = client.get(KEY)
    assert isinstance(value, bytes)
    assert re.fullmatch(rb"[0-9a-f]{32}", value)
    assert value.decode() == lease.token
    assert 14_000 < client.pttl(KEY) <= 15_000


def test_a_strangers_lock_holds_us_off_and_ours_holds_the_stranger_off(client: redis.Redis) -> None:
    client.set(KEY, "f" * 32, nx=True, px=60_000)
    mine = locks(client)
    assert mine.acquire(NAME, slot=1, sent=None, interval=MINUTE) is Refusal.HELD
    assert client.get(KEY) == b"f" * 32

    client.delete(KEY)
    lease = taken(mine.acquire(NAME, slot=1, sent=None, interval=MINUTE))
    assert client.set(KEY, "f" * 32, nx=True, px=60_000) is None
    mine.release(lease)
    assert client.set(KEY, "f" * 32, nx=True, px=60_000) is True


def test_a_lock_that_is_no_longer_ours_is_not_released(client: redis.Redis) -> None:
    mine = locks(client)
    lease = taken(mine.acquire(NAME, slot=1, sent=None, interval=MINUTE))
    client.set(KEY, "f" * 32, px=60_000)
    mine.release(lease)
    assert client.get(KEY) == b"f" * 32


def test_two_of_ours_exclude_each_other(client: redis.Redis) -> None:
    first, second = locks(client), locks(client)
    lease = taken(first.acquire(NAME, slot=1, sent=None, interval=MINUTE))
    assert second.acquire(NAME, slot=1, sent=None, interval=MINUTE) is Refusal.HELD
    first.release(lease)
    assert isinstance(second.acquire(NAME, slot=1, sent=None, interval=MINUTE), Lease)


def test_a_finished_slot_and_all_before_it_are_done(client: redis.Redis) -> None:
    now = server_slot(client)
    mine = locks(client)
    lease = taken(mine.acquire(NAME, slot=now, sent=None, interval=HOUR))
    lease.succeeded(now)
    mine.release(lease)
    for slot in (now - HOUR_US, now):
        assert mine.acquire(NAME, slot=slot, sent=None, interval=HOUR) is Refusal.DONE
    assert isinstance(mine.acquire(NAME, slot=now + 1, sent=None, interval=HOUR), Lease)


def test_a_scheduler_whose_clock_is_behind_is_not_held_off_by_its_own_runs(client: redis.Redis) -> None:
    """Its tick of an old slot makes the current slot run; its next tick is older than that slot too."""
    now = server_slot(client)
    mine = locks(client)
    lease = taken(mine.acquire(NAME, slot=now - 5 * HOUR_US, sent=None, interval=HOUR))
    lease.succeeded(now - HOUR_US)  # what was current when the run before this one began
    mine.release(lease)
    assert isinstance(mine.acquire(NAME, slot=now - 4 * HOUR_US, sent=None, interval=HOUR), Lease)


def test_the_mark_never_goes_back(client: redis.Redis) -> None:
    mine = locks(client)
    for slot in (9, 3):
        client.delete(KEY)
        lease = taken(mine.acquire(NAME, slot=None, sent=None, interval=MINUTE))
        lease.succeeded(slot)
        mine.release(lease)
    assert client.get(TICK) == b"9"


def test_neighbouring_microseconds_are_told_apart(client: redis.Redis) -> None:
    slot = 4_000_000_000_000_001  # in the year 2096, and odd
    mine = locks(client)
    lease = taken(mine.acquire(NAME, slot=slot, sent=None, interval=MINUTE))
    lease.succeeded(slot)
    mine.release(lease)
    assert mine.acquire(NAME, slot=slot, sent=None, interval=MINUTE) is Refusal.DONE
    assert isinstance(mine.acquire(NAME, slot=slot + 1, sent=None, interval=MINUTE), Lease)


def test_a_tick_older_than_its_interval_is_stale_by_the_servers_clock(client: redis.Redis) -> None:
    seconds, micros = client.time()
    now = seconds * 1_000_000 + micros
    mine = locks(client)
    old = now - 61_000_000
    assert mine.acquire(NAME, slot=1, sent=old, interval=MINUTE) is Refusal.STALE
    assert isinstance(mine.acquire(NAME, slot=1, sent=now, interval=MINUTE), Lease)


def test_failures_are_counted_until_a_success(client: redis.Redis) -> None:
    mine, streaks = locks(client), []
    for outcome in ("failed", "failed", "succeeded", "failed"):
        lease = taken(mine.acquire(NAME, slot=None, sent=None, interval=MINUTE))
        streaks.append(lease.streak)
        lease.failed() if outcome == "failed" else lease.succeeded(1)
        mine.release(lease)
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
    assert isinstance(mine.acquire(NAME, slot=1, sent=None, interval=MINUTE), Lease)
    assert calls[0] == calls[1]


def test_a_held_lock_is_renewed_past_its_lease(client: redis.Redis) -> None:
    mine = locks(client, 0.6, renewing=True)
    lease = taken(mine.acquire(NAME, slot=1, sent=None, interval=MINUTE))
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        lease.check()
        assert client.get(KEY) == lease.token.encode()
        time.sleep(0.05)
    mine.release(lease)
    assert client.get(KEY) is None


def test_a_deleted_lock_is_noticed_at_the_next_renewal(client: redis.Redis) -> None:
    mine = locks(client, 0.9, renewing=True)
    lease = taken(mine.acquire(NAME, slot=1, sent=None, interval=MINUTE))
    client.delete(KEY)
    eventually(lambda: lease.lost, 0.9)
    with pytest.raises(LeaseLost):
        lease.check()


def test_a_lock_that_could_not_be_renewed_is_lost_when_its_lease_is_over(
    any_redis_server: Redis, client: redis.Redis
) -> None:
    client = redis.Redis.from_url(any_redis_server.url(), socket_timeout=0.1)
    mine = locks(client, 0.6, renewing=True)
    lease = taken(mine.acquire(NAME, slot=1, sent=None, interval=MINUTE))
    started = time.monotonic()
    any_redis_server.kill()
    try:
        eventually(lambda: lease._lost.is_set(), 3)
        assert 0.2 < time.monotonic() - started < 1.2
    finally:
        any_redis_server.start()


def test_a_paused_process_knows_by_its_own_clock_that_it_lost(client: redis.Redis) -> None:
    lease = taken(locks(client, 0.3).acquire(NAME, slot=1, sent=None, interval=MINUTE))  # no keeper: as if paused
    lease.check()
    eventually(lambda: lease.lost, 1)
    with pytest.raises(LeaseLost):
        lease.check()
