"""What Python cannot hold, in one row, hides no other row."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import Connection

from app.storage import postgres
from app.storage.bounded_values import EARLIEST, LATEST, LONGEST
from app.storage.settings import DatabaseSettings


@pytest.fixture
def connection(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection[Any]]:
    monkeypatch.setenv("DATABASE_URL", database)
    with postgres.connect(DatabaseSettings.read()) as connection:
        yield connection


READ = {
    "'infinity'::timestamptz": LATEST,
    "'-infinity'::timestamptz": EARLIEST,
    "'0044-03-15 BC'::timestamptz": EARLIEST,
    "'0001-01-01 00:00+00'::timestamptz": EARLIEST,
    "'294276-12-31 23:59:59+00'::timestamptz": LATEST,
    "'9999-12-31 23:59:59.999999+00'::timestamptz": LATEST,
    "'2026-11-23 09:00:00.000001+00'::timestamptz": datetime(2026, 11, 23, 9, 0, 0, 1, UTC),
    "NULL::timestamptz": None,
    "'178000000 years'::interval": LONGEST,
    "'-178000000 years'::interval": -LONGEST,
    "'-1 us'::interval": timedelta(microseconds=-1),
    "'1 day 01:00:00'::interval": timedelta(hours=25),
    "'{\"a\": [1, null]}'::jsonb": {"a": [1, None]},
    "('[' || repeat('9', 5000) || ']')::jsonb": None,
    "('[' || repeat('9', 5000) || ']')::json": None,
    "(repeat('[', 3000) || repeat(']', 3000))::jsonb": None,
    "NULL::jsonb": None,
}


@pytest.mark.parametrize("value", READ)
def test_a_value_is_read_as_the_nearest_that_there_is(connection: Connection[Any], value: str) -> None:
    query = f"SELECT {value} AS odd UNION ALL SELECT {value} FROM generate_series(1, 2)".encode()
    assert [row[0] for row in connection.execute(query)] == [READ[value]] * 3


def test_so_does_every_connection_of_the_pool(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database)
    with postgres.pool(DatabaseSettings.read()) as pool, pool.connection() as connection:
        assert connection.execute("SELECT 'infinity'::timestamptz").fetchone() == (LATEST,)


def test_no_time_with_a_length_leaves_the_calendar() -> None:
    assert EARLIEST - 3 * LONGEST < EARLIEST < LATEST < LATEST + 3 * LONGEST
