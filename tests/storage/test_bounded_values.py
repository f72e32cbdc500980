"""What Python cannot hold, in one row, hides no other row."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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
    "'5000000 years -1 days'::interval": LONGEST,
    "'-5000000 years 1 days'::interval": -LONGEST,
    "'5000000 years -2000000000 days'::interval": -LONGEST,
    "'-1 days 5000000:00:00'::interval": LONGEST,
    "'1 day -00:00:00.5'::interval": timedelta(days=1, seconds=-0.5),
    "'-1 mons +1 day -00:00:00.000001'::interval": timedelta(days=-29, microseconds=-1),
    "'0'::interval": timedelta(),
    "'[1.5, -0.25]'::json": [1.5, -0.25],
    "'[1e999, -1e999]'::json": [sys.float_info.max, -sys.float_info.max],
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


def test_an_infinite_length_is_the_longest(connection: Connection[Any]) -> None:
    if connection.info.server_version < 170_000:
        pytest.skip("the first PostgreSQL with infinite lengths is 17")
    query = b"SELECT 'infinity'::interval, '-infinity'::interval"
    assert connection.execute(query).fetchone() == (LONGEST, -LONGEST)


_NUMBERS = st.sampled_from([0, 1, -1]) | st.integers(-(10**3), 10**3) | st.integers(-(10**8), 10**8)


@given(st.lists(st.tuples(_NUMBERS, _NUMBERS, _NUMBERS, _NUMBERS | st.integers(-(10**15), 10**15)), min_size=1))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_length_is_what_postgresql_says_that_it_is(
    connection: Connection[Any], lengths: list[tuple[int, int, int, int]]
) -> None:
    query = """
        SELECT made, (EXTRACT(epoch FROM made) * 1000000)::numeric
          FROM unnest(%s::int[], %s::int[], %s::int[], %s::bigint[]) AS part (years, months, days, microseconds),
               LATERAL (SELECT make_interval(years => years, months => months, days => days)
                               + microseconds * interval '1 microsecond') AS whole (made)"""
    most = LONGEST // timedelta(microseconds=1)
    for read, said in connection.execute(query, [list(parts) for parts in zip(*lengths, strict=True)]):
        assert read // timedelta(microseconds=1) == min(max(said, -most), most)


@given(st.lists(st.integers(-210_000_000_000, 9_000_000_000_000), min_size=1))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_time_is_what_postgresql_says_that_it_is(connection: Connection[Any], seconds: list[int]) -> None:
    query = "SELECT to_timestamp(said), said FROM unnest(%s::bigint[]) AS one (said)"
    earliest, latest = int(EARLIEST.timestamp()), int(LATEST.timestamp())
    for read, said in connection.execute(query, [seconds]):
        assert read == datetime.fromtimestamp(min(max(said, earliest), latest), UTC)


def test_so_does_every_connection_of_the_pool(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database)
    with postgres.pool(DatabaseSettings.read()) as pool, pool.connection() as connection:
        assert connection.execute("SELECT 'infinity'::timestamptz").fetchone() == (LATEST,)


def test_no_time_with_a_length_leaves_the_calendar() -> None:
    assert EARLIEST - 3 * LONGEST < EARLIEST < LATEST < LATEST + 3 * LONGEST
