"""A lock that is deleted before its time: only this one, and nothing runs twice by it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis as redis_py
from psycopg import Connection

from actors.wraps_expired import WrapsExpired, wraps_expired
from app.core.errors import LeaseLost
from app.sweeping.lock import Locks, Tick
from app.sweeping.unlocking import Unlocking, holder
from tests.support.replica import Replica
from tests.support.rights.acl import GrantedRedis, as_user
from tests.support.rows import column, rows
from tests.sweeping.steering.hand import WHO, hand
from tests.sweeping.steering.test_by_hand import RUNS

NAME = "wraps-expired"
KEY = f"secrets-bridge:lock:worker:sweeper:{NAME}"
MINUTE = timedelta(minutes=1)


@pytest.fixture
def client(any_redis_server: GrantedRedis) -> Iterator[redis_py.Redis]:
    with redis_py.Redis.from_url(any_redis_server.owner_url()) as connected:
        connected.flushall()
        yield connected


def test_it_shows_the_lock_without_what_would_make_one_its_holder(client: redis_py.Redis) -> None:
    unlocking = Unlocking(as_user(client), "secrets-bridge")
    assert unlocking.look(NAME) is None
    tick = Locks(as_user(client), namespace="secrets-bridge", lease=MINUTE).acquire(
        NAME, slot=None, sent=None, interval=MINUTE
    )
    assert isinstance(tick, Tick)
    held = unlocking.look(NAME)
    assert held is not None
    assert held.shown == tick.lease.token[:8]
    assert held.left is not None
    assert timedelta(0) < held.left <= MINUTE


def test_what_a_stranger_has_written_is_shown_as_letters_and_digits(client: redis_py.Redis) -> None:
    client.set(KEY, b"\x1b[31m\xff!a1")
    held = Unlocking(as_user(client), "secrets-bridge").look(NAME)
    assert held is not None
    assert (held.shown.isascii(), held.left) == (True, None)
    assert "\x1b" not in held.shown


def test_only_the_lock_that_was_shown_is_deleted(client: redis_py.Redis) -> None:
    unlocking = Unlocking(as_user(client), "secrets-bridge")
    client.set(KEY, "a" * 32)
    held = unlocking.look(NAME)
    assert held is not None
    client.set(KEY, "b" * 32)
    assert not unlocking.delete(NAME, held)
    assert client.get(KEY) == b"b" * 32
    again = unlocking.look(NAME)
    assert again is not None
    assert unlocking.delete(NAME, again)
    assert client.get(KEY) is None


def test_an_empty_value_or_another_type_is_a_lock_too_and_deleted_as_what_was_shown(client: redis_py.Redis) -> None:
    unlocking = Unlocking(as_user(client), "secrets-bridge")
    client.set(KEY, "")
    empty = unlocking.look(NAME)
    assert empty is not None
    assert (empty.kind, empty.shown) == ("string", "")
    client.delete(KEY)
    client.hset(KEY, "a", "b")
    assert not unlocking.delete(NAME, empty)
    other = unlocking.look(NAME)
    assert other is not None
    assert (other.kind, other.shown, other.left) == ("key of another type", "", None)  # it may not ask for types
    client.delete(KEY)
    client.set(KEY, "")
    assert not unlocking.delete(NAME, other)
    assert unlocking.delete(NAME, empty)
    assert not unlocking.delete(NAME, empty)
    client.hset(KEY, "a", "b")
    assert unlocking.delete(NAME, other)
    assert unlocking.look(NAME) is None


def test_a_user_who_may_not_ask_for_times_sees_it_without(client: redis_py.Redis) -> None:
    client.set(KEY, "a" * 32, px=60_000)
    client.acl_setuser(
        "plain", enabled=True, nopass=True, keys=["*"], commands=["+eval", "+evalsha", "+get", "+script"]
    )
    try:
        arguments = client.connection_pool.connection_kwargs
        with redis_py.Redis(host=arguments["host"], port=arguments["port"], username="plain", password="x") as plain:
            held = Unlocking(plain, "secrets-bridge").look(NAME)
    finally:
        client.acl_deluser("plain")
    assert held is not None
    assert held.left is None


def test_a_run_whose_lock_was_deleted_commits_nothing_more_once_another_has_begun(
    replica: Replica, sql: Connection[Any]
) -> None:
    sql.execute(
        "INSERT INTO secret_wraps (encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash, byte_length,"
        " expires_at) SELECT '\\x01', '\\x02', '\\x03', 'k', '\\x04', 1, '2026-01-01' FROM generate_series(1, 2000)"
    )
    unlocking = Unlocking(as_user(replica.redis), "secrets-bridge")
    left: list[int] = []

    def unlock(_seconds: float) -> None:
        replica.runner.on_batch = lambda _seconds: None
        run = holder(sql, NAME)
        assert run is not None
        assert (run.worker, run.requested_by) == (replica.runner.worker, WHO)
        held = unlocking.look(NAME)
        assert held is not None
        assert unlocking.delete(NAME, held)
        left.extend(column(sql, "SELECT count(*) FROM secret_wraps"))
        hand(replica, wraps_expired, WrapsExpired())

    replica.runner.on_batch = unlock
    with pytest.raises(LeaseLost):
        hand(replica, wraps_expired, WrapsExpired())
    first, second = rows(sql, RUNS)
    assert (first["outcome"], second["outcome"]) == ("interrupted", "success")
    assert first["changed"] == 2000 - left[0]
    assert second["changed"] == left[0] > 0
    assert holder(sql, NAME) is None
