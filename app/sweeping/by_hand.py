"""A run that somebody asks for, now: under the lock, fence and ledger that every run has.

It waits for its lock, where a tick would leave it be, and it is not tried again: the next tick is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from app.core.errors import NotDue, Reason
from app.sweeping.lock import Locks, Refusal, Tick
from app.sweeping.run_state import RunState
from app.sweeping.runner import RunFailed, Runner
from app.sweeping.schedule import slot_at
from app.sweeping.sweeper import Sweeper, SweeperSettings

if TYPE_CHECKING:
    from app.sweeping.steering.order import Order

#: Seconds between two tries to take a lock that is held.
_PAUSE = 0.2
#: Tries of a claim that met another one at the very same moment.
_TRIES = 3


def acquire(  # noqa: PLR0913 - what a wait needs to know
    locks: Locks,
    sweeper: Sweeper[Any],
    settings: SweeperSettings,
    order: Order,
    *,
    wait: timedelta,
    on_held: Callable[[], None],
    stopping: Callable[[], bool],
) -> Tick | None:
    """Take the sweeper's lock, and wait for it so long at most; None when it stays held. Raises redis.RedisError.

    `on_held` is called once, when it is found to be held; `stopping` ends the wait.
    """
    ends, told = time.monotonic() + wait.total_seconds(), False
    while True:
        answer = locks.acquire(sweeper.name, slot=None, sent=None, interval=settings.tick)
        if not isinstance(answer, Refusal):
            return replace(answer, order=order)
        if not told:
            told = True
            on_held()
        if stopping() or time.monotonic() >= ends:
            return None
        time.sleep(min(_PAUSE, max(0.0, ends - time.monotonic())))


def run(locks: Locks, runner: Runner, sweeper: Sweeper[Any], settings: SweeperSettings, tick: Tick) -> RunState:
    """Do the run, give the lock back and return how it ended. Raises NotDue, LeaseLost and SweepFailed, as a runner.

    The slot of the cadence that it lies in is marked as done, and none that is still to come.
    """
    try:
        state = _run(runner, sweeper, settings, tick)
    except RunFailed as error:
        locks.release(tick, done=False)
        error.write_down()
        raise
    except BaseException:
        locks.release(tick, done=False)
        raise
    locks.release(tick, done=True, claimed=slot_at(state.claimed.slot, settings.tick))
    return state


def _run(runner: Runner, sweeper: Sweeper[Any], settings: SweeperSettings, tick: Tick) -> RunState:
    for _ in range(_TRIES - 1):
        try:
            return runner.run(sweeper, settings, tick)
        except NotDue as error:
            if error.reason is not Reason.SUPERSEDED or tick.lease.lost:
                raise
    return runner.run(sweeper, settings, tick)
