"""Slots: when a sweeper is due, counted from the Unix epoch.

A sweeper with interval I has the slots [k*I, (k+1)*I). A slot is named by its start in microseconds since the
epoch, not by k: so slots of one sweeper stay comparable when its interval is changed. All arithmetic is on
integers; a double could not tell neighbouring microseconds apart after enough divisions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

_MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

#: The start of a slot, microseconds since the epoch.
Slot = int


def microseconds(moment: datetime) -> int:
    """Count whole microseconds from the epoch to an aware datetime."""
    return (moment - _EPOCH) // _MICROSECOND


def moment(slot: Slot) -> datetime:
    """Return the start of a slot as an aware datetime in UTC."""
    return _EPOCH + slot * _MICROSECOND


def slot_at(now: int, interval: timedelta) -> Slot:
    """Return the slot that is current at `now` (microseconds since the epoch)."""
    return now - now % (interval // _MICROSECOND)


class Every:
    """A cadence for periodiq: due once in every slot, aligned to the epoch, for any interval from 1 s up.

    periodiq asks `validate` with a time rounded to whole seconds, which would miss or double the ticks of an
    interval such as 1.2 s; so the clock is read here, and what was fired last is remembered. The first call is due
    at once: a scheduler that starts in the middle of a slot fires that slot, which is harmless if it has run.
    """

    def __init__(self, interval: timedelta, clock: Callable[[], float] = time.time) -> None:
        self.interval = interval
        self._clock = clock
        self._fired: Slot = -1

    def __str__(self) -> str:
        return f"every {self.interval.total_seconds():g}s"

    def current(self) -> Slot:
        """Return the slot of this moment by this machine's clock."""
        return slot_at(int(self._clock() * 1_000_000), self.interval)

    def validate(self, _now: datetime) -> bool:
        """Return whether the current slot is still to be fired, and take it as fired.

        A clock that was set back by more than a slot counts as it is now: else it would mute the ticks for as long as
        it was ahead. One that wavers about a boundary fires once.
        """
        slot = self.current()
        back = moment(self._fired) - moment(slot)
        due = back < timedelta(0) or back > self.interval
        self._fired = slot if due else self._fired
        return due

    def forget(self) -> Slot:
        """Take the current slot as not fired, since its tick was lost; return that slot."""
        self._fired = -1
        return self.current()

    def next_valid_date(self, _last: datetime) -> datetime:
        """Return the start of the next slot."""
        return moment(self.current()) + self.interval
