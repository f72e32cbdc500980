"""Four clocks: PostgreSQL's decides about slots; Redis's, a scheduler's and this machine's are compared with it.

Where a clock is wrong, what it said is clamped to what can be, and reported: nothing is refused for it.
"""

from __future__ import annotations

import time
from datetime import timedelta

import structlog

from app.core import metrics

log = structlog.get_logger("clock")

#: A clock that stays wrong is reported once in so many seconds.
_REPORT_EVERY = 300.0
_reported: dict[str, float] = {}


def observe(clock: str, ahead: timedelta) -> None:
    """Note how far a clock is ahead of PostgreSQL's."""
    metrics.CLOCK_SKEW.labels(clock).set(ahead.total_seconds())


def report(clock: str, ahead: timedelta, most: timedelta, task: str) -> None:
    """Log an error when something lies further ahead by a clock than it can; it has been clamped."""
    now = time.monotonic()
    if ahead <= most or now - _reported.get(clock, -_REPORT_EVERY) < _REPORT_EVERY:
        return
    _reported[clock] = now
    log.error("a clock is, or was, ahead", clock=clock, ahead=ahead, task=task)
