"""How lengths of time and names are said in a line."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from app.core.values import format_duration

_MINUTE, _HOUR, _DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def length(time: timedelta) -> str:
    """Say how long something is, in the two units that matter: `850ms`, `50s`, `3m20s`, `2h5m`, `3d4h`."""
    if time < timedelta(seconds=1):
        return f"{max(0, time // timedelta(milliseconds=1))}ms"
    if time < _HOUR:
        return format_duration(timedelta(seconds=int(time.total_seconds())))
    if time < _DAY:
        return format_duration(time // _MINUTE * _MINUTE)
    hours = time % _DAY // _HOUR
    return f"{time // _DAY}d" + (f"{hours}h" if hours else "")


def listed(names: Sequence[str], most: int = 3) -> str:
    """Say some names, and how many more there are."""
    shown = names if len(names) <= most + 1 else names[:most]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
