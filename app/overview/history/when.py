"""A moment as an operator writes one: `10m` ago, `14:05`, or with its date; UTC unless it says otherwise."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from app.core.values import parse_duration

_OF_DAY = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?Z?")
ACCEPTED = "accepted: a time ago such as 10m, a time of the day such as 14:05, or 2026-11-23T14:05:00Z; UTC"


def parse_when(text: str, now: datetime) -> datetime:
    """Read a moment. A time of the day is its newest occurrence. Raises ValueError with what is accepted."""
    match = _OF_DAY.fullmatch(text)
    if match is not None:
        hour, minute, second = (int(part or 0) for part in match.groups())
        today = now.astimezone(UTC).replace(hour=hour, minute=minute, second=second, microsecond=0)
        return today if today <= now else today - timedelta(days=1)
    try:
        return now - parse_duration(text.removesuffix(" ago"))
    except (ValueError, OverflowError):
        pass
    try:
        when = datetime.fromisoformat(text)
        when = when.replace(tzinfo=UTC) if when.tzinfo is None else when
        return when.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"not a time; {ACCEPTED}") from None
