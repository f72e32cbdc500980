"""Slots, counted one by one in whole microseconds: whoever checks the ledger must not repeat its arithmetic."""

from __future__ import annotations

from datetime import datetime, timedelta

from app.sweeping.schedule import microseconds, moment


def between(after: datetime, before: datetime, interval: timedelta) -> range:
    """Return the slots that begin after the one moment and before the other, as microseconds since the epoch."""
    step, first = interval // timedelta(microseconds=1), microseconds(after) + 1
    return range(first + -first % step, microseconds(before), step)


def slot_of(when: datetime, interval: timedelta) -> datetime:
    """Return the start of the slot that a moment is in."""
    now = microseconds(when)
    return moment(now - now % (interval // timedelta(microseconds=1)))


def is_slot(when: datetime, interval: timedelta) -> bool:
    """Return whether a slot begins at this moment."""
    return slot_of(when, interval) == when
