"""Cadences whose slots do not end while a test runs."""

from __future__ import annotations

import time
from datetime import timedelta
from itertools import count

DAY = timedelta(days=1)


def steady(least: timedelta = DAY, unit: timedelta = timedelta(minutes=10)) -> timedelta:
    """Return a cadence in whole units, at least so long, whose current slot is a third over, and not two thirds.

    A slot of a round minute, hour or day ends in the middle of some test. Of this one a third is left, whenever that
    is begun: with a day so much that a module may have it as a constant. The databases are on this machine, and so
    have its clock.
    """
    now = timedelta(seconds=time.time())
    lengths = (least + number * unit for number in count())
    return next(length for length in lengths if length <= 3 * (now % length) <= 2 * length)
