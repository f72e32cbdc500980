"""A run by hand, as the command makes it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from app.sweeping import by_hand
from app.sweeping.run_state import RunState
from app.sweeping.steering.order import Order
from app.sweeping.sweeper import Sweeper, SweeperSettings
from tests.support.replica import Replica

WHO = "operator@desk"


def hand(  # noqa: PLR0913 - what a run by hand is asked with
    replica: Replica,
    sweeper: Sweeper[Any],
    settings: SweeperSettings,
    *,
    despite_pause: bool = False,
    approved: bool = False,
    wait: float = 0.0,
) -> RunState:
    """Do one run by hand; its lock must be free by the end of the wait, seconds."""
    tick = by_hand.acquire(
        replica.locks,
        sweeper,
        settings,
        Order(WHO, despite_pause, approved),
        wait=timedelta(seconds=wait),
        on_held=lambda: None,
        stopping=lambda: False,
    )
    assert tick is not None
    return by_hand.run(replica.locks, replica.runner, sweeper, settings, tick)
