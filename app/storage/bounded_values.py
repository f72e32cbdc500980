"""Values as they are read: what Python cannot hold, or cannot reckon with, counts as the nearest that it can.

PostgreSQL's calendar is longer than Python's and has two infinities, its intervals are longer, and its JSON has deeper
levels and longer numbers. Read as it comes, one such value in one row is an error of the whole statement, and whoever
reads that statement sees none of the other rows.
"""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.types.datetime import IntervalLoader, TimestamptzLoader
from psycopg.types.json import JsonbLoader, JsonLoader

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.abc import Buffer

#: Times and lengths that are told from each other. A time with some of these lengths is still in the calendar.
EARLIEST, LATEST = datetime(1000, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
LONGEST = timedelta(days=100_000)
_INFINITE = {b"infinity": LONGEST, b"-infinity": -LONGEST}
_PARTS = re.compile(
    rb"(?:([-+]?\d+) years? ?)?(?:([-+]?\d+) mons? ?)?(?:([-+]?\d+) days? ?)?"
    rb"(?:([-+])?(\d+):(\d+):(\d+)(?:\.(\d{1,6}))?)?"
)
#: Microseconds.
_DAY = 24 * 60 * 60 * 1_000_000
_YEAR = _DAY * 1461 // 4


class _Timestamptz(TimestamptzLoader):
    def load(self, data: Buffer) -> datetime:
        """Return a time within the bounds."""
        try:
            return min(max(super().load(data), EARLIEST), LATEST)
        except psycopg.DataError:
            text = bytes(data)
            return EARLIEST if text == b"-infinity" or text.endswith(b"BC") else LATEST


class _Interval(IntervalLoader):
    def load(self, data: Buffer) -> timedelta:
        """Return a length of time within the bounds, a year as 365.25 days and a month as 30, as EXTRACT(epoch) has it.

        Each part has a sign of its own, and what counts is the sum. psycopg reads an infinite one as none at all.
        """
        text = bytes(data)
        if text in _INFINITE:
            return _INFINITE[text]
        if not text or (parts := _PARTS.fullmatch(text)) is None:
            return min(max(super().load(data), -LONGEST), LONGEST)
        years, months, days, sign, hours, minutes, seconds, fraction = (part or b"0" for part in parts.groups())
        time = ((int(hours) * 60 + int(minutes)) * 60 + int(seconds)) * 1_000_000 + int(fraction.ljust(6, b"0"))
        whole = int(years) * _YEAR + (int(months) * 30 + int(days)) * _DAY + (-time if sign == b"-" else time)
        most = LONGEST // timedelta(microseconds=1)
        return timedelta(microseconds=min(max(whole, -most), most))


class _Json(JsonLoader):
    def load(self, data: Buffer) -> Any:
        """Return what a document says, None for one that cannot be read."""
        return _parsed(data)


class _Jsonb(JsonbLoader):
    def load(self, data: Buffer) -> Any:
        """Return what a document says, None for one that cannot be read."""
        return _parsed(data)


def _parsed(data: Buffer) -> Any:
    try:
        return json.loads(bytes(data), parse_float=_finite)
    except (ValueError, RecursionError):  # numbers of thousands of digits, thousands of levels
        return None


def _finite(text: str) -> float:
    return min(max(float(text), -sys.float_info.max), sys.float_info.max)


def read_within_bounds(connection: Connection[Any]) -> None:
    """Have a connection's values be read so."""
    for name, loader in (("timestamptz", _Timestamptz), ("interval", _Interval), ("json", _Json), ("jsonb", _Jsonb)):
        connection.adapters.register_loader(name, loader)
