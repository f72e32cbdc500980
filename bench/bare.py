"""The least that Dramatiq and periodiq can be: one actor on each of two queues, no database, no metrics.

    dramatiq bench.bare
    periodiq bench.bare

What our processes take is measured beside these.
"""

from __future__ import annotations

import os

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from periodiq import PeriodiqMiddleware, cron

_client = redis.Redis.from_url(os.environ["REDIS_URL"])
broker = RedisBroker(client=_client, middleware=[PeriodiqMiddleware()])  # type: ignore[no-untyped-call]
dramatiq.set_broker(broker)


@dramatiq.actor(periodic=cron("* * * * *"))
def tick() -> None:
    """Leave a mark that says that it ran."""
    _client.incr("bare-done")


@dramatiq.actor(queue_name="sinks")
def deliver() -> None:
    """Do nothing."""
