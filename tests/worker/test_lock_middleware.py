"""The lock around an actor: what the run found out goes with the lock when it is given back."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from unittest.mock import sentinel

import dramatiq
import pytest
import redis as redis_py

from actors.agents_stale import AgentsStale, agents_stale
from app.core.role import SWEEP_QUEUE
from app.demo.servers import Redis
from app.sweeping import lock
from app.sweeping.actor import SweepActor
from app.sweeping.lock import Locks, Refusal, Tick, lock_key
from app.sweeping.schedule import Every
from app.worker.middleware.lock import SweepLock
from tests.support.replica import Replica
from tests.support.slots import steady
from tests.support.waiting import eventually
from tests.worker.test_broker import Served

DAY = timedelta(days=1)


def test_the_slot_that_a_run_claimed_is_what_the_others_find_done(replica: Replica) -> None:
    """A tick taken at the very end of a slot, whose run claims the next one: nobody need ask PostgreSQL for that."""
    settings = AgentsStale(interval=steady())
    tick = replica.acquire(agents_stale, settings, slot=0)
    assert isinstance(tick, Tick)
    assert tick.slot is not None
    lock.current.set(replace(tick, slot=tick.slot - settings.tick // timedelta(microseconds=1)))

    outcome = SweepActor(replica.runner, agents_stale, settings).run()
    SweepLock(replica.locks).after_process_message(sentinel.broker, sentinel.message, result=outcome)

    assert replica.acquire(agents_stale, settings, slot=tick.slot) is Refusal.DONE


@pytest.mark.parametrize("interval", [timedelta(hours=1), timedelta(seconds=1)])
def test_who_shortens_a_lock_that_outlives_its_lease_looks_again_when_that_is_over(
    redis: redis_py.Redis, redis_server: Redis, interval: timedelta
) -> None:
    """Its holder is dead, and Redis's clock was set back by a day. The next tick may be an interval away."""
    served = Served(redis_server.url())
    locks = Locks(served.broker.client, namespace="secrets-bridge", lease=timedelta(seconds=2))
    served.broker.add_middleware(SweepLock(locks))
    ran, key = threading.Event(), lock_key("secrets-bridge", "swept")
    actor = dramatiq.actor(actor_name="swept", queue_name=SWEEP_QUEUE, broker=served.broker, periodic=Every(interval))(
        ran.set
    )
    locks.acquire("swept", slot=None, sent=None, interval=interval)
    redis.pexpire(key, DAY)
    with served.running():
        actor.send_with_options(scheduled_at="now")
        if interval > locks.length:
            eventually(ran.is_set)
        else:  # the next tick does
            eventually(lambda: not redis.exists(key))
            assert not redis.llen(f"dramatiq:{SWEEP_QUEUE}.DQ")
            assert not ran.is_set()
