"""The lock around an actor: what the run found out goes with the lock when it is given back."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from unittest.mock import sentinel

from actors.agents_stale import AgentsStale, agents_stale
from app.sweeping import lock
from app.sweeping.actor import SweepActor
from app.sweeping.lock import Refusal, Tick
from app.worker.middleware.lock import SweepLock
from tests.support.replica import Replica

DAY = timedelta(days=1)


def test_the_slot_that_a_run_claimed_is_what_the_others_find_done(replica: Replica) -> None:
    """A tick taken at the very end of a slot, whose run claims the next one: nobody need ask PostgreSQL for that."""
    settings = AgentsStale(interval=DAY)
    tick = replica.acquire(agents_stale, settings, slot=0)
    assert isinstance(tick, Tick)
    assert tick.slot is not None
    lock.current.set(replace(tick, slot=tick.slot - DAY // timedelta(microseconds=1)))

    outcome = SweepActor(replica.runner, agents_stale, settings).run()
    SweepLock(replica.locks).after_process_message(sentinel.broker, sentinel.message, result=outcome)

    assert replica.acquire(agents_stale, settings, slot=tick.slot) is Refusal.DONE
