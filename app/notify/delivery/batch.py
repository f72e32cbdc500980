"""A batch: deliveries of one receiver that one process has claimed, and how each of them ended."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from app.core.errors import SinkRejected, SinkUnavailable
from app.notify.receivers import Reserved

if TYPE_CHECKING:
    from app.core.events import Notification
    from app.notify.routing import Target


class ClaimedDelivery(NamedTuple):
    """A delivery that only this process may attempt until its lease ends."""

    id: int
    notification: Notification
    attempt: int
    queued_at: datetime

    @property
    def events(self) -> int:
        """How many events it carries: one, or those of a digest."""
        return sum(tally.events for tally in self.notification.event.tallies) or 1

    @property
    def fresh(self) -> bool:
        """Whether it is a first attempt that a dedup window or the pace may hold; a digest goes out all the same."""
        return self.attempt == 1 and not self.notification.event.tallies


class Batch(NamedTuple):
    """Deliveries of one receiver, claimed together under one lease, oldest first."""

    target: Target
    deliveries: tuple[ClaimedDelivery, ...]
    #: When its lease began, or a little before, by this process's monotonic clock, seconds.
    claimed_at: float
    #: Failures in a row of the receiver before it.
    failures: int = 0
    #: Whether the receiver has more that is due.
    more: bool = False
    #: What of the receiver is used up for it, in advance.
    reserved: Reserved = Reserved()


class Attempted(NamedTuple):
    """How one attempt ended, and how many seconds it took."""

    delivery: ClaimedDelivery
    error: SinkRejected | SinkUnavailable | None
    seconds: float


class DeliveryOutcome(NamedTuple):
    """How an attempt was settled: the delivery's new state, and what follows from it."""

    state: str
    reason: str = ""
    wait: timedelta = timedelta(0)
    #: How long the receiver rests, when this opened its breaker.
    opened: timedelta | None = None
    recovered: bool = False
    switched_off: bool = False
    #: How the event ended in every sink, when this was the last of its deliveries and one of them is dead.
    final_states: tuple[str, ...] = ()
    #: Seconds since the delivery was queued.
    age: float = 0.0
