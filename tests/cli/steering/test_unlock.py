"""`sb-worker unlock`: what it shows, what it refuses, and what it deletes."""

from __future__ import annotations

from typing import Any

import redis as redis_py
from psycopg import Connection

from tests.cli.steering.conftest import Run

KEY = "secrets-bridge:lock:worker:sweeper:wraps-expired"
TOKEN = "0123456789abcdef" * 2


def test_a_free_lock_is_nothing_to_do(run: Run, redis: redis_py.Redis) -> None:
    done = run("unlock", "wraps-expired")
    assert (done.returncode, done.stdout) == (0, "wraps-expired: its lock is free\n")


def test_a_strangers_lock_is_shown_and_deleted_by_who_says_yes(run: Run, redis: redis_py.Redis) -> None:
    redis.set(KEY, TOKEN)
    asked = run("unlock", "wraps-expired")
    assert asked.returncode == 1
    assert asked.stdout == "wraps-expired: held by 01234567..., without an end\n"
    assert asked.stderr == "error: nobody is there to be asked; --yes deletes it without asking\n"
    assert redis.get(KEY) == TOKEN.encode()
    redis.pexpire(KEY, 3_600_000)
    done = run("unlock", "wraps-expired", "--yes")
    assert done.returncode == 0
    assert "for 59m" in done.stdout
    assert done.stdout.endswith("wraps-expired: its lock is deleted; the next tick may take it\n")
    assert TOKEN not in done.stdout + asked.stdout
    assert redis.get(KEY) is None


def test_a_lock_that_no_worker_has_written_is_shown_and_deleted_as_well(run: Run, redis: redis_py.Redis) -> None:
    redis.set(KEY, "")
    empty = run("unlock", "wraps-expired", "--yes")
    assert empty.returncode == 0
    assert empty.stdout.startswith("wraps-expired: held by an empty value, with")
    redis.hset(KEY, "a", "b")
    other = run("unlock", "wraps-expired", "--yes")
    assert other.returncode == 0
    # The rights of deploy/redis.acl do not include to ask for a type.
    assert other.stdout.startswith("wraps-expired: held by a key of another type, which no worker writes, with")
    assert not redis.exists(KEY)


def test_a_lock_that_a_run_of_ours_seems_to_hold_takes_force(
    run: Run, redis: redis_py.Redis, sql: Connection[Any]
) -> None:
    sql.execute(
        "INSERT INTO secrets_bridge_worker.sweep_run (name, slot, worker, started_at, outcome)"
        " VALUES ('wraps-expired', '2026-01-01Z', 'host-7:42', '2026-01-01 12:00Z', 'running')"
    )
    redis.set(KEY, TOKEN)
    done = run("unlock", "wraps-expired", "--yes")
    assert done.returncode == 1
    assert "the ledger has a run by host-7:42 since 2026-01-01 12:00:00Z that has not ended" in done.stdout
    assert "--force deletes it: a run that still goes on stops" in done.stderr
    assert redis.get(KEY) == TOKEN.encode()
    assert run("unlock", "wraps-expired", "--yes", "--force").returncode == 0
    assert redis.get(KEY) is None
