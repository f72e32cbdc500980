"""Which sweepers nobody runs, by the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from psycopg import Connection
from psycopg_pool import ConnectionPool
from structlog.testing import capture_logs

from app.worker.overdue import Overdue, Watched

MINUTE = timedelta(minutes=1)


@pytest.fixture
def pool(database: str) -> Iterator[ConnectionPool[Connection[Any]]]:
    with ConnectionPool[Connection[Any]](
        database, kwargs={"autocommit": True}, min_size=0, max_size=1, timeout=0.2, open=True
    ) as pool:
        yield pool


def shown(overdue: Overdue) -> dict[str, float]:
    family, _ = overdue.collect()
    return {sample.labels["task"]: sample.value for sample in family.samples}


def newest(sql: Connection[Any], name: str, seconds: int) -> None:
    """Have the newest slot of a sweeper be so old."""
    sql.execute(
        "INSERT INTO secrets_bridge_worker.sweep_state (name, last_slot, previous_slot, token)"
        " VALUES (%(name)s, now() - make_interval(secs => %(age)s), 'epoch', 1)"
        " ON CONFLICT (name) DO UPDATE SET last_slot = excluded.last_slot",
        {"name": name, "age": seconds},
    )


def test_a_sweeper_is_overdue_from_the_end_of_its_slot_on(
    pool: ConnectionPool[Connection[Any]], sql: Connection[Any]
) -> None:
    names = {"just-run": 30, "late": 100, "forgotten": 400}
    for name, age in names.items():
        newest(sql, name, age)
    watched = [Watched(name, "agents", MINUTE) for name in (*names, "never-ran")]
    overdue = Overdue(pool, [*watched, Watched("resting", "no_such_table", MINUTE)])
    with capture_logs() as logs:
        overdue.look()
        overdue.look()
    values = shown(overdue)
    assert [values[name] for name in ("just-run", "never-ran", "resting")] == [0, 0, 0]
    assert 40 <= values["late"] < 100
    assert 340 <= values["forgotten"] < 400
    assert [(one["log_level"], one["task"]) for one in logs if one.get("task") in values] == [("warning", "forgotten")]


def test_it_is_told_again_only_after_a_run(pool: ConnectionPool[Connection[Any]], sql: Connection[Any]) -> None:
    overdue = Overdue(pool, [Watched("wraps-expired", "secret_wraps", MINUTE)])
    with capture_logs() as logs:
        for age in (1000, 2000, 100, 1, 1000):
            newest(sql, "wraps-expired", age)
            overdue.look()
    assert [one["log_level"] for one in logs if one.get("task") == "wraps-expired"] == ["warning", "info", "warning"]


def test_without_a_database_it_goes_on_rising_and_says_nothing(
    pool: ConnectionPool[Connection[Any]], sql: Connection[Any]
) -> None:
    newest(sql, "wraps-expired", 100)
    overdue = Overdue(pool, [Watched("wraps-expired", "secret_wraps", MINUTE)])
    overdue.look()
    before = shown(overdue)
    pool.close()
    with capture_logs() as logs:
        overdue.look()
    assert shown(overdue)["wraps-expired"] > before["wraps-expired"] > 0
    assert [one for one in logs if one.get("task") == "wraps-expired"] == []
