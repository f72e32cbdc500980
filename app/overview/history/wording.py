"""Times and lengths of time as the commands that look back write them: UTC, and no more digits than one reads."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from app.core.values import format_duration

_SECOND = timedelta(seconds=1)
#: Characters of a text that an operator has once typed in.
_MOST_TYPED = 200


def at(when: datetime) -> str:
    """Write a moment with its date, and no fraction that is zero."""
    utc = when.astimezone(UTC)
    return f"{utc:%Y-%m-%d %H:%M:%S}{f'{utc:.%f}'.rstrip('0').rstrip('.')} UTC"


def at_second(when: datetime) -> str:
    """Write a moment with its date, cut off below a second."""
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def length(of: timedelta) -> str:
    """Write a length of time with two or three digits that count."""
    if of < timedelta(0):
        return "-" + length(-of)
    if of < _SECOND:
        return format_duration(of // timedelta(milliseconds=1) * timedelta(milliseconds=1))
    unit = _SECOND / 10 if of < _SECOND * 60 else _SECOND
    return format_duration(of // unit * unit)


def slots(number: int) -> str:
    """Write a number of slots."""
    return "1 slot" if number == 1 else f"{number:,} slots"


def rows(number: int) -> str:
    """Write a number of rows."""
    return "1 row" if number == 1 else f"{number:,} rows"


def typed(text: str, most: int | None = _MOST_TYPED) -> str:
    """Return what somebody has typed in, for one line of a terminal: nothing in it may steer one. None: all of it."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if most is None or len(line) <= most else f"{line[:most]}..."
