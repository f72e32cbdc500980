"""What is left behind is found: a key, messages of nobody, descriptors and threads."""

from __future__ import annotations

import redis as redis_py

from tests.chaos.ending.leftovers import (
    SLACK_FILES,
    SLACK_THREADS,
    Held,
    left_in_redis,
    left_of_processes,
)
from tests.chaos.history import Leftover

CONSUMER = "0b5c7c0e-1111-4222-8333-444455556666"


def test_marks_and_what_a_killed_consumer_had_taken_may_stay(redis: redis_py.Redis) -> None:
    redis.set("{secrets-bridge:lock:worker:sweeper:wraps-expired}:tick", "1")
    redis.zadd("dramatiq:__heartbeats__", {CONSUMER: 1})
    redis.sadd(f"dramatiq:__acks__.{CONSUMER}.sweeps", "one")
    redis.hset("dramatiq:sweeps.msgs", "one", "a tick")

    assert list(left_in_redis(redis)) == []


def test_a_lock_a_queue_and_messages_of_nobody_are_left_behind(redis: redis_py.Redis) -> None:
    redis.set("secrets-bridge:lock:worker:sweeper:wraps-expired", "token")
    redis.rpush("dramatiq:sweeps", "one")
    redis.hset("dramatiq:sweeps.msgs", mapping={"one": "a tick", "two": "of nobody"})
    redis.sadd(f"dramatiq:__acks__.{CONSUMER}.sinks", "three")

    assert list(left_in_redis(redis)) == [
        Leftover("key", "dramatiq:sweeps"),
        Leftover("key", "secrets-bridge:lock:worker:sweeper:wraps-expired"),
        Leftover("key", f"dramatiq:__acks__.{CONSUMER}.sinks: nobody knows any more that its consumer is dead"),
        Leftover("messages", "1 of the queue sweeps are in no list"),
    ]


def test_a_process_that_leaks_is_found_and_one_that_came_later_is_not_compared() -> None:
    before = {"1": Held("worker0", 30, 20), "2": Held("worker1", 30, 20)}
    after = {"1": Held("worker0", 31 + SLACK_FILES, 21 + SLACK_THREADS), "3": Held("worker1", 999, 999)}

    assert [left.what for left in left_of_processes(before, after)] == ["descriptors", "threads"]
    assert list(left_of_processes(before, before)) == []
