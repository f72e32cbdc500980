"""Values as they are read: what Python cannot hold, or cannot reckon with, counts as the nearest that it can.

PostgreSQL's calendar is longer than Python's and has two infinities, its intervals are longer, and its JSON has deeper
levels and longer numbers. Read as it comes, one such value in one row is an error of the whole statement, and whoever
reads that statement sees none of the other rows.
"""

from __future__ import annotations

import json
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
        """Return a length of time within the bounds."""
        try:
            return min(max(super().load(data), -LONGEST), LONGEST)
        except psycopg.DataError:
            return -LONGEST if b"-" in bytes(data) else LONGEST


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
        return json.loads(bytes(data))
    except (ValueError, RecursionError):  # numbers of thousands of digits, thousands of levels
        return None


def read_within_bounds(connection: Connection[Any]) -> None:
    """Have a connection's values be read so."""
    for name, loader in (("timestamptz", _Timestamptz), ("interval", _Interval), ("json", _Json), ("jsonb", _Jsonb)):
        connection.adapters.register_loader(name, loader)
