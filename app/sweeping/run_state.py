"""What a run is between two transactions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.sweeping.ledger.runs import Claimed
from app.sweeping.sweeper import Sweep

if TYPE_CHECKING:
    from app.notify.outbox import Written


@dataclass(frozen=True)
class RunState:
    """A run between two transactions: all that it has done so far."""

    claimed: Claimed
    sweep: Sweep
    transactions: int = 0
    #: Whether the run is over, and whether it left work to the next one.
    over: bool = False
    handed_over: bool = False
    #: How many runs a pass through the whole table takes.
    runs_a_pass: int = 1
    #: Deliveries of the events that it wrote, to be triggered when it is over.
    deliveries: tuple[Written, ...] = ()
