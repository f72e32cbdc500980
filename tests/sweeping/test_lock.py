"""The Redis lock, on every kind of Redis that is here, against a stranger who follows the published rules."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import redis
from redis.crc import key_slot
from structlog.testing import capture_logs

from app.core.errors import LeaseLost
from app.demo.ports import reserved_port
from app.sweeping import clocks
from app.sweeping.lock import Locks, Refusal, Tick
from app.sweeping.schedule import slot_at
from app.sweeping.target_locks import RedisTargetLocks
from tests.support.rights.acl import GrantedRedis, as_user
from tests.support.slots import steady
from tests.support.waiting import HUNG, eventually

NAME = "wraps-expired"
KEY = "secrets-bridge:lock:worker:sweeper:wraps-expired"
TICK = "{secrets-bridge:lock:worker:sweeper:wraps-expired}:tick"
MINUTE = timedelta(minutes=1)
STEADY = steady()
STEADY_US = STEADY // timedelta(microseconds=1)


@pytest.fixture
def client(any_redis_server: GrantedRedis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(any_redis_server.owner_url()) as connected:
        connected.flushall()
        yield connected


def locks(client: redis.Redis, lease: float = 15.0) -> Locks:
    return Locks(as_user(client), namespace="secrets-bridge", lease=timedelta(seconds=lease))


@contextmanager
def renewing(client: redis.Redis, lease: float) -> Iterator[Locks]:
    renewed = locks(client, lease)
    renewed.start()
    try:
        yield renewed
    finally:
        renewed.stop()


def server_slot(client: redis.Redis) -> int:
    """Return the slot of the steady cadence that is current by the server's clock."""
    seconds, _ = client.time()
    return slot_at(seconds * 1_000_000, STEADY)


def acquired(answer: Tick | Refusal) -> Tick:
    assert isinstance(answer, Tick), answer
    return answer


def test_key_token_and_ttl_are_those_of_the_go_worker(client: redis.Redis) -> None:
    client.set("before", "", px=15_000)
    tick = acquired(locks(client).acquire(NAME, slot=None, sent=None, interval=MINUTE))
    client.set("after", "", px=15_000)
    value = client.get(KEY)
    assert isinstance(value, bytes)
    assert re.fullmatch(rb"[0-9a-f]{32}", value)
    assert value.decode() == tick.lease.token
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
    tick = acquired(mine.acquire(NAME, slot=1, sent=None, interval=MINUTE))
    assert client.set(KEY, "f" * 32, nx=True, px=60_000) is None
    mine.release(tick, done=False)
    assert client.set(KEY, "f" * 32, nx=True, px=60_000) is True


def test_a_lock_of_a_clock_that_was_set_back_lives_for_its_lease_and_no_longer(client: redis.Redis) -> None:
    """Redis keeps the moment at which a key is to go, and moves with none of its clock's jumps."""
    others = locks(client, lease=5)
    acquired(others.acquire(NAME, slot=None, sent=None, interval=MINUTE))
    client.pexpire(KEY, 3_600_000)
    assert locks(client).acquire(NAME, slot=None, sent=None, interval=MINUTE) is Refusal.SHORTENED
    assert 0 < client.pttl(KEY) <= 5_000  # by the lease of who holds it
    assert locks(client).acquire(NAME, slot=None, sent=None, interval=MINUTE) is Refusal.HELD


@pytest.mark.parametrize("milliseconds", [3_600_000, None])
def test_how_long_a_strangers_lock_lives_is_the_strangers_matter(client: redis.Redis, milliseconds: int | None) -> None:
    client.set(KEY, "f" * 32, px=milliseconds)
    assert locks(client).acquire(NAME, slot=None, sent=None, interval=MINUTE) is Refusal.HELD
    assert client.pttl(KEY) == -1 if milliseconds is None else client.pttl(KEY) > 3_000_000


def test_a_targets_lock_of_a_clock_that_was_set_back_lives_for_a_minute(client: redis.Redis) -> None:
    key = "secrets-bridge:lock:discover:one"
    client.set(key, "f" * 32, px=3_600_000)
    assert not RedisTargetLocks(as_user(client), "secrets-bridge").take("one")
    assert 0 < client.pttl(key) <= 60_000


def test_a_lock_that_is_no_longer_ours_is_not_released(client: redis.Redis) -> None:
    mine = locks(client)
    tick = acquired(mine.acquire(NAME, slot=1, sent=None, interval=MINUTE))
    client.set(KEY, "f" * 32, px=60_000)
    mine.release(tick, done=False)
    assert client.get(KEY) == b"f" * 32


def test_two_of_ours_exclude_each_other(client: redis.Redis) -> None:
    first, second = locks(client), locks(client)
    tick = acquired(first.acquire(NAME, slot=1, sent=None, interval=MINUTE))
    assert second.acquire(NAME, slot=1, sent=None, interval=MINUTE) is Refusal.HELD
    first.release(tick, done=False)
    assert isinstance(second.acquire(NAME, slot=1, sent=None, interval=MINUTE), Tick)


def run(client: redis.Redis, slot: int) -> int | None:
    """Take the lock for a tick of this slot, and mark what it stands for as done; return that."""
    mine = locks(client)
    tick = acquired(mine.acquire(NAME, slot=slot, sent=None, interval=STEADY))
    mine.release(tick, done=True)
    return tick.slot


def test_a_finished_slot_and_all_before_it_are_done(client: redis.Redis) -> None:
    now = server_slot(client)
    assert run(client, now) == now
    for slot in (now - STEADY_US, now):
        assert locks(client).acquire(NAME, slot=slot, sent=None, interval=STEADY) is Refusal.DONE


def test_a_tick_at_the_end_of_its_slot_whose_run_claims_the_next_one_has_done_that(client: redis.Redis) -> None:
    """PostgreSQL is asked a moment after Redis: the slot may have changed in between."""
    now = server_slot(client)
    mine = locks(client)
    tick = acquired(mine.acquire(NAME, slot=now, sent=None, interval=STEADY))
    assert tick.slot is not None
    before = replace(tick, slot=tick.slot - STEADY_US)
    mine.release(before, done=True, claimed=tick.slot)
    assert mine.acquire(NAME, slot=tick.slot, sent=None, interval=STEADY) is Refusal.DONE


def test_a_claimed_slot_that_has_not_begun_by_this_clock_is_not_done(client: redis.Redis) -> None:
    """Of a PostgreSQL whose clock is ahead: its tick is still to come, and would be lost."""
    mine = locks(client)
    tick = acquired(mine.acquire(NAME, slot=server_slot(client), sent=None, interval=STEADY))
    assert tick.slot is not None
    mine.release(tick, done=True, claimed=tick.slot + STEADY_US)
    assert client.get(TICK) == str(tick.slot).encode()


def test_what_was_not_finished_is_not_done(client: redis.Redis) -> None:
    mine = locks(client)
    for _ in range(2):
        mine.release(acquired(mine.acquire(NAME, slot=1, sent=None, interval=STEADY)), done=False)
    assert client.get(TICK) is None


def test_a_scheduler_whose_clock_is_behind_means_the_newest_slot(client: redis.Redis) -> None:
    now = server_slot(client)
    assert run(client, now - 5 * STEADY_US) == now
    client.set(TICK, now - STEADY_US)  # as if a slot had passed
    assert run(client, now - 4 * STEADY_US) == now


@pytest.mark.parametrize("ahead", [10 * 60, 3600, 86_400, 100 * 365 * 86_400], ids=str)
def test_a_scheduler_whose_clock_is_ahead_means_the_newest_slot_and_mutes_nobody(
    client: redis.Redis, ahead: int
) -> None:
    minute = 60_000_000
    seconds, _ = client.time()
    now = seconds * 1_000_000 - seconds * 1_000_000 % minute
    mine = locks(client)
    with capture_logs() as records:
        clocks._reported.clear()
        tick = acquired(mine.acquire(NAME, slot=now + ahead * 1_000_000, sent=None, interval=MINUTE))
    assert tick.slot in (now, now + minute)
    assert [(record["log_level"], record["clock"]) for record in records if "clock" in record] == [
        ("error", "scheduler")
    ]
    mine.release(tick, done=True)
    assert int(client.get(TICK) or 0) == tick.slot  # so the right ticks of the slots to come are not done


def test_a_tick_a_little_ahead_means_its_own_slot(client: redis.Redis) -> None:
    day = 86_400_000_000
    seconds, _ = client.time()
    ahead = seconds * 1_000_000 + day // 4
    tick = acquired(locks(client).acquire(NAME, slot=ahead, sent=None, interval=timedelta(days=1)))
    assert tick.slot == ahead


def test_the_mark_never_goes_back(client: redis.Redis) -> None:
    now = server_slot(client)
    mine = locks(client)
    slow = acquired(mine.acquire(NAME, slot=now, sent=None, interval=STEADY))
    client.delete(KEY)
    client.set(TICK, now + 1)
    mine.release(slow, done=True)
    assert client.get(TICK) == b"%d" % (now + 1)


@pytest.mark.parametrize("ahead", [2, 1000])
def test_a_mark_of_a_clock_that_was_ahead_counts_for_nothing(client: redis.Redis, ahead: int) -> None:
    now = server_slot(client)
    client.set(TICK, now + ahead * STEADY_US)
    assert run(client, now) == now
    assert client.get(TICK) == b"%d" % now


def test_our_own_key_is_in_the_locks_slot_of_a_cluster() -> None:
    assert key_slot(TICK.encode()) == key_slot(KEY.encode())


def test_a_tick_older_than_its_interval_is_stale_by_the_servers_clock(client: redis.Redis) -> None:
    seconds, micros = client.time()
    now = seconds * 1_000_000 + micros
    mine = locks(client)
    old = now - 61_000_000
    assert mine.acquire(NAME, slot=1, sent=old, interval=MINUTE) is Refusal.STALE
    assert isinstance(mine.acquire(NAME, slot=1, sent=now, interval=MINUTE), Tick)


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
    with renewing(client, 6) as mine:
        tick = acquired(mine.acquire(NAME, slot=1, sent=None, interval=MINUTE))
        client.set("without renewal", "", px=6_000)

        def over() -> bool:
            tick.lease.check()  # as a run does that makes progress
            return not client.exists("without renewal")

        eventually(over)
        assert client.get(KEY) == tick.lease.token.encode()
        mine.release(tick, done=False)
        assert client.get(KEY) is None


def test_a_deleted_lock_is_noticed_at_the_next_renewal(client: redis.Redis) -> None:
    with renewing(client, 0.9) as mine:
        tick = acquired(mine.acquire(NAME, slot=1, sent=None, interval=MINUTE))
        client.delete(KEY)
        eventually(tick.lease._lost.is_set)  # which the end of the lease alone does not do
        with pytest.raises(LeaseLost):
            tick.lease.check()


def test_a_lock_that_could_not_be_renewed_is_lost_when_its_lease_is_over(
    any_redis_server: GrantedRedis, client: redis.Redis
) -> None:
    with renewing(client, 0.6) as mine:
        tick = acquired(mine.acquire(NAME, slot=1, sent=None, interval=MINUTE))
        any_redis_server.kill()
        try:
            eventually(tick.lease._lost.is_set)
            assert time.monotonic() >= tick.lease.deadline  # and not before
        finally:
            any_redis_server.start()


def test_a_paused_process_knows_by_its_own_clock_that_it_lost(client: redis.Redis) -> None:
    mine = locks(client, 60)  # no keeper: as if paused
    tick = acquired(mine.acquire(NAME, slot=1, sent=None, interval=MINUTE))
    tick.lease.check()
    tick.lease.extend(time.monotonic() - 60, MINUTE)  # its last renewal was a lease ago
    with pytest.raises(LeaseLost):
        tick.lease.check()


def test_a_lock_is_renewed_only_while_its_run_makes_progress(client: redis.Redis) -> None:
    with renewing(client, 0.6) as mine:
        with capture_logs() as records:
            tick = acquired(mine.acquire(NAME, slot=1, sent=None, interval=MINUTE))
            eventually(tick.lease._lost.is_set)  # nobody asked for the lock
        eventually(lambda: client.get(KEY) is None)
        assert [record["event"] for record in records if record["event"].startswith("run ")] == [
            "run stuck; its lock is given up"
        ]


@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files"), MemoryError(), RuntimeError(), redis.ReadOnlyError()]
)
def test_the_keeper_survives_any_error(client: redis.Redis, error: Exception) -> None:
    with renewing(client, 60) as mine:
        renew, calls = mine._renew, []

        def unreliable(**words: object) -> object:
            calls.append(words)
            if len(calls) == 1:
                raise error
            return renew(**words)  # type: ignore[arg-type]

        mine._renew = unreliable  # type: ignore[assignment]
        tick = acquired(mine.acquire(NAME, slot=1, sent=None, interval=MINUTE))
        for _ in range(2):
            due = tick.lease.renew_at = time.monotonic()
            with mine._changed:
                mine._changed.notify()
            eventually(lambda due=due: tick.lease.renew_at > due)  # type: ignore[misc]
        assert len(calls) >= 2
        assert not tick.lease.lost


def test_a_keeper_that_is_stopped_ends_and_renews_no_more(client: redis.Redis) -> None:
    with renewing(client, 60) as mine:
        tick = acquired(mine.acquire(NAME, slot=1, sent=None, interval=MINUTE))
        (keeper,) = (thread for thread in threading.enumerate() if thread.name == "lease-keeper")
    keeper.join(HUNG)
    assert not keeper.is_alive()
    assert client.get(KEY) == tick.lease.token.encode()  # whose lease ends by itself


def test_a_targets_lock_is_one_that_the_api_understands(client: redis.Redis) -> None:
    ours, others = (
        RedisTargetLocks(as_user(client), "secrets-bridge"),
        RedisTargetLocks(as_user(client), "secrets-bridge"),
    )
    key = "secrets-bridge:lock:discover:one"
    assert ours.take("one")
    assert re.fullmatch(r"b'[0-9a-f]{32}'", repr(client.get(key)))
    assert 0 < client.pttl(key) <= 60_000
    assert not others.take("one")
    others.release(["one"])  # which is not theirs
    assert client.exists(key)
    ours.release(["one"])
    assert not client.exists(key)
    assert others.take("one")


def test_a_targets_lock_that_the_client_has_asked_for_twice_is_ours(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does by itself on a connection that is lost with the reply."""
    send = redis.Redis.set

    def ask_twice(*args: Any, **options: Any) -> Any:
        send(*args, **options)
        return send(*args, **options)

    monkeypatch.setattr(redis.Redis, "set", ask_twice)
    assert RedisTargetLocks(as_user(client), "secrets-bridge").take("one")
    assert not RedisTargetLocks(as_user(client), "secrets-bridge").take("one")


def test_a_redis_that_is_away_is_asked_once_for_all_locks_of_targets() -> None:
    """Each call may take as long as Redis is waited for, and there may be thousands."""
    with reserved_port() as port, redis.Redis(port=port) as nobody, capture_logs() as logs:
        RedisTargetLocks(nobody, "secrets-bridge").release(str(number) for number in range(100))
    assert len([line for line in logs if "targets" in line["event"]]) == 1  # others may be renewing locks meanwhile


def test_a_targets_lock_whose_reply_was_lost_is_found_to_be_taken(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, replies = redis.Redis.set, iter([True, False])

    def lose_the_first(*args: Any, **options: Any) -> Any:
        answer = send(*args, **options)
        if next(replies):
            raise redis.ConnectionError
        return answer

    monkeypatch.setattr(redis.Redis, "set", lose_the_first)
    assert RedisTargetLocks(as_user(client), "secrets-bridge").take("one")
