"""Signs of life: what a process says of itself, by whose clock, and what becomes of it without a database."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from app import __version__
from app.core.role import Kind
from app.fleet import processes
from app.fleet.processes import Process
from app.fleet.signs_of_life import Identity, SignsOfLife
from tests.overview.signs_of_life import sign_of_life
from tests.support.rows import column

HOUR = timedelta(hours=1)
CADENCES = {"wraps-expired": timedelta(seconds=1.5)}
OFF = {"sessions-expired": "SB_SWEEP_SESSIONS_INTERVAL"}


@pytest.fixture
def pool(database: str) -> Iterator[ConnectionPool[Connection[Any]]]:
    with ConnectionPool[Connection[Any]](database, kwargs={"autocommit": True}, min_size=0, max_size=2) as pool:
        yield pool


def known(sql: Connection[Any]) -> list[Process]:
    return processes.read(sql.cursor(row_factory=dict_row), HOUR)


def test_a_process_says_what_it_is(pool: ConnectionPool[Connection[Any]], sql: Connection[Any]) -> None:
    SignsOfLife(pool, Identity(Kind.WORKER, "prod", CADENCES, OFF)).beat()

    (one,) = known(sql)
    assert (one.kind, one.deployment, one.version) == ("worker", "prod", __version__)
    assert (one.cadences, one.off) == (CADENCES, OFF)
    assert one.alive
    assert not one.draining
    assert one.ticked_at is None
    assert abs(one.clock_ahead) < timedelta(minutes=1)


def test_a_sign_that_was_under_way_as_the_process_ended_does_not_bring_it_back(
    pool: ConnectionPool[Connection[Any]], sql: Connection[Any]
) -> None:
    one = SignsOfLife(pool, Identity(Kind.WORKER, "prod", {}, {}))
    one.beat()
    one.end()
    one.beat()

    (ended,) = known(sql)
    assert ended.ended_at
    assert not ended.alive


def test_a_process_says_which_queues_it_serves(pool: ConnectionPool[Connection[Any]], sql: Connection[Any]) -> None:
    for kind, queues in ((Kind.SCHEDULER, ()), (Kind.WORKER, ("sinks", "sweeps")), (Kind.NOTIFIER, ("sinks",))):
        SignsOfLife(pool, Identity(kind, "prod", {}, {}, queues)).beat()

    does = {one.kind: (one.schedules, one.sweeps, one.notifies) for one in known(sql)}
    assert does == {
        "scheduler": (True, False, False),
        "worker": (False, True, True),
        "notifier": (False, False, True),
    }


def test_a_scheduler_says_when_it_last_sent_a_tick(pool: ConnectionPool[Connection[Any]], sql: Connection[Any]) -> None:
    SignsOfLife(pool, Identity(Kind.SCHEDULER, "prod", {}, {}), ticked_at=lambda: time.monotonic() - 100).beat()

    (one,) = known(sql)
    assert one.ticked_at is not None
    assert timedelta(seconds=99) < one.seen_at - one.ticked_at


def test_one_that_ends_says_so_and_one_that_is_silent_counts_as_gone(
    pool: ConnectionPool[Connection[Any]], sql: Connection[Any]
) -> None:
    ended, silent, alive = (SignsOfLife(pool, Identity(kind, "prod", {}, {})) for kind in list(Kind)[:3])
    for one in (ended, silent, alive):
        one.beat()
    ended.end()
    sql.execute("UPDATE secrets_bridge_worker.process SET seen_at = now() - interval '16 s' WHERE kind = 'notifier'")

    assert {one.kind: one.alive for one in known(sql)} == {"worker": False, "notifier": False, "scheduler": True}
    assert [one.kind for one in known(sql) if one.ended_at] == ["worker"]


def test_a_drain_is_seen(pool: ConnectionPool[Connection[Any]], sql: Connection[Any]) -> None:
    SignsOfLife(pool, Identity(Kind.WORKER, "prod", {}, {}), draining=lambda: True).beat()

    assert [one.draining for one in known(sql)] == [True]


def test_rows_of_long_ago_are_deleted(pool: ConnectionPool[Connection[Any]], sql: Connection[Any]) -> None:
    SignsOfLife(pool, Identity(Kind.WORKER, "old", {}, {})).beat()
    sql.execute("UPDATE secrets_bridge_worker.process SET seen_at = now() - interval '8 days'")
    SignsOfLife(pool, Identity(Kind.WORKER, "new", {}, {})).beat()

    assert [row[0] for row in sql.execute("SELECT deployment FROM secrets_bridge_worker.process")] == ["new"]


def test_what_was_seen_by_a_clock_that_was_ahead_is_no_process_and_is_deleted(
    pool: ConnectionPool[Connection[Any]], sql: Connection[Any]
) -> None:
    sign_of_life(sql, "scheduler", seen=-86_400, ticked=-86_400)
    sign_of_life(sql, "scheduler", seen=1, ticked=60)
    assert len(known(sql)) == 1
    last = processes.last_tick(sql.cursor(row_factory=dict_row))
    assert last is not None
    assert last < known(sql)[0].seen_at

    SignsOfLife(pool, Identity(Kind.WORKER, "new", {}, {})).beat()
    assert column(sql, "SELECT count(*) FROM secrets_bridge_worker.process WHERE seen_at > now() + interval '1 h'") == [
        0
    ]


@pytest.mark.parametrize("cadences", ['{"x": null, "y": 60}', '{"x": "60s", "y": 60}', '{"x": 1e15, "y": 60}', "[]"])
def test_what_cannot_be_read_of_a_process_is_left_out(sql: Connection[Any], cadences: str) -> None:
    sign_of_life(sql, "worker", off={"z": "Z"})
    sql.execute("UPDATE secrets_bridge_worker.process SET cadences = %s", [cadences])
    (process,) = known(sql)
    assert process.cadences == ({} if cadences == "[]" else {"y": timedelta(minutes=1)})
    assert process.off == {"z": "Z"}
    sql.execute("UPDATE secrets_bridge_worker.process SET off = '[1]'")
    assert known(sql)[0].off == {}


def test_without_a_database_nothing_is_raised_and_the_next_one_arrives(
    pool: ConnectionPool[Connection[Any]], sql: Connection[Any]
) -> None:
    heart = SignsOfLife(pool, Identity(Kind.WORKER, "prod", {}, {}))
    sql.execute("ALTER TABLE secrets_bridge_worker.process RENAME TO away")
    heart.beat()
    sql.execute("ALTER TABLE secrets_bridge_worker.away RENAME TO process")
    heart.beat()

    assert len(known(sql)) == 1
