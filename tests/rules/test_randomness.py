"""Threads of libraries leave the global generator of random numbers alone, which Hypothesis watches while it draws."""

from __future__ import annotations

import random
import threading

import pytest
import redis as redis_py
from psycopg_pool import ConnectionPool
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from tests.support.waiting import HUNG


def test_a_pool_that_connects_and_a_client_that_tries_again_draw_from_their_own(database: str) -> None:
    def refused() -> None:
        raise redis_py.ConnectionError

    def tries_again() -> None:
        with pytest.raises(redis_py.ConnectionError):
            Retry(ExponentialWithJitterBackoff(0.01, 0.01), 1).call_with_retry(refused, lambda _error: None)

    before = random.getstate()
    with ConnectionPool(database, min_size=1, timeout=HUNG) as pool:
        pool.wait(HUNG)
        thread = threading.Thread(target=tries_again)
        thread.start()
        thread.join(HUNG)

    assert random.getstate() == before
