"""Streaks of failures: when they are told, again, and as over; by one of any number of replicas, whatever changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, timedelta
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import dict_row

from actors.agents_stale import AgentsStale, agents_stale
from app.core.events import Kind
from app.sweeping.lock import Tick
from app.sweeping.runner import RunFailed
from app.sweeping.strategy import Run, Step, Strategy
from app.sweeping.streak import Telling, count_failure
from tests.support.replica import Replica
from tests.support.rows import rows
from tests.support.waiting import HUNG

HOUR, DAY = timedelta(hours=1), timedelta(hours=24)
STATE = "SELECT failures, failing_since, reported_at FROM secrets_bridge_worker.sweep_state"
FAILED, RECOVERED = "flag stale agents failed", "sweep recovered"


@contextmanager
def broken(sql: Connection[Any]) -> Iterator[None]:
    """Have every run fail."""
    sql.execute("ALTER TABLE agents RENAME COLUMN status TO state")
    try:
        yield
    finally:
        sql.execute("ALTER TABLE agents RENAME COLUMN state TO status")


def fails(replica: Replica, sql: Connection[Any], times: int = 1) -> None:
    with broken(sql):
        for _ in range(times):
            replica.next_slot()
            replica.fails(agents_stale, AgentsStale())


def succeeds(replica: Replica) -> None:
    replica.next_slot()
    replica.run(agents_stale, AgentsStale())


def titles(replica: Replica) -> list[str]:
    return [event.title for event in replica.events]


def pass_time(sql: Connection[Any], length: timedelta) -> None:
    sql.execute(
        "UPDATE secrets_bridge_worker.sweep_state"
        " SET failing_since = failing_since - %(length)s, reported_at = reported_at - %(length)s",
        {"length": length},
    )


def test_a_failure_that_lasts_is_told_again_with_since_when_and_how_often(
    replica: Replica, sql: Connection[Any]
) -> None:
    fails(replica, sql, 3)
    pass_time(sql, DAY - HOUR)
    fails(replica, sql)
    assert titles(replica) == [FAILED]
    pass_time(sql, HOUR)
    (state,) = rows(sql, STATE)
    fails(replica, sql, 2)
    first, again = replica.events
    assert (first.detail, dict(first.metadata)) == ("UndefinedColumn 42703", {})
    since = f"{state['failing_since'].astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    assert again.detail == f"UndefinedColumn 42703; failing since {since}"
    assert dict(again.metadata) == {"failed_attempts": 5}
    assert (again.component, again.kind, again.title, again.severity) == (
        (first.component, Kind.FAILED, first.title, first.severity)
    )
    succeeds(replica)
    assert titles(replica) == [FAILED, FAILED, RECOVERED]
    assert dict(replica.events[-1].metadata) == {"failed_attempts": 6}


def test_zero_never_tells_again(replica: Replica, sql: Connection[Any]) -> None:
    replica.runner.telling = Telling(remind_after=timedelta(0))
    fails(replica, sql)
    pass_time(sql, 30 * DAY)
    fails(replica, sql)
    assert titles(replica) == [FAILED]


def test_of_many_replicas_that_fail_at_once_one_tells_and_one_tells_again(
    database: str, replica: Replica, sql: Connection[Any]
) -> None:
    """Each on its own connection, and none sees what another has not committed."""

    def told_by_all() -> int:
        told: list[bool] = []
        begin = threading.Barrier(4)

        def count() -> None:
            with replica.runner.pool.connection() as connection:
                begin.wait(HUNG)
                with connection.transaction():
                    cursor = connection.cursor(row_factory=dict_row)
                    told.append(count_failure(cursor, "agents-stale", Telling()).tell)

        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HUNG)
        assert len(told) == 4
        return sum(told)

    assert told_by_all() == 1
    pass_time(sql, DAY)
    assert told_by_all() == 1
    assert rows(sql, STATE)[0]["failures"] == 8


def test_a_failure_that_is_rolled_back_has_told_nothing(replica: Replica, sql: Connection[Any]) -> None:
    """As that of a process which is killed before its commit: the next one tells."""
    with replica.runner.pool.connection() as connection, connection.transaction(force_rollback=True):
        assert count_failure(connection.cursor(row_factory=dict_row), "agents-stale", Telling()).tell
    fails(replica, sql)
    assert titles(replica) == [FAILED]


def test_few_failures_are_kept_quiet_and_so_is_their_end(replica: Replica, sql: Connection[Any]) -> None:
    replica.runner.telling = Telling(failures_before=3)
    fails(replica, sql, 2)
    succeeds(replica)
    assert titles(replica) == []
    fails(replica, sql, 3)
    (told,) = replica.events
    assert told.title == FAILED
    assert dict(told.metadata) == {"failed_attempts": 3}
    succeeds(replica)
    succeeds(replica)
    assert titles(replica) == [FAILED, RECOVERED]


def test_a_lower_threshold_tells_a_streak_that_was_quiet_and_a_higher_one_the_end_of_one_that_was_told(
    replica: Replica, sql: Connection[Any]
) -> None:
    replica.runner.telling = Telling(failures_before=5)
    fails(replica, sql, 2)
    replica.runner.telling = Telling(failures_before=1)
    fails(replica, sql)
    assert titles(replica) == [FAILED]
    replica.runner.telling = Telling(failures_before=5)
    fails(replica, sql)
    succeeds(replica)
    assert titles(replica) == [FAILED, RECOVERED]


def test_a_failure_told_while_the_next_run_is_under_way_has_its_end_told(
    replica: Replica, sql: Connection[Any]
) -> None:
    """The lock is free before a failure is written down, so the next run may have claimed its slot by then."""
    settings = AgentsStale()
    with broken(sql):
        tick = replica.acquire(agents_stale, settings)
        assert isinstance(tick, Tick)
        with pytest.raises(RunFailed) as failed:
            replica.runner.run(agents_stale, settings, tick)
        replica.locks.release(tick, done=False)

    class Slow(Strategy):
        steps = 0

        def step(self, run: Run, *, over: bool) -> Step:
            del run, over
            self.steps += 1
            return Step({}, last=self.steps == 2)

        def wait(self, stopping: Callable[[], bool]) -> None:
            del stopping
            failed.value.write_down()

    replica.run(replace(agents_stale, strategy=lambda _settings: Slow()), settings)
    assert titles(replica) == [FAILED, RECOVERED]
    assert rows(sql, STATE) == [{"failures": 0, "failing_since": None, "reported_at": None}]


def test_what_an_older_release_has_told_is_not_told_again_and_has_its_end(
    replica: Replica, sql: Connection[Any]
) -> None:
    """It counts, and knows nothing of the other two columns."""
    succeeds(replica)
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET failures = 2")
    fails(replica, sql)
    assert titles(replica) == []
    succeeds(replica)
    assert titles(replica) == [RECOVERED]
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET failures = 2")
    succeeds(replica)
    assert titles(replica) == [RECOVERED, RECOVERED]


def test_a_streak_that_an_older_release_has_ended_is_over(replica: Replica, sql: Connection[Any]) -> None:
    fails(replica, sql)
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET failures = 0")
    fails(replica, sql)
    assert titles(replica) == [FAILED, FAILED]


def test_a_clock_that_was_ahead_puts_no_reminder_off(replica: Replica, sql: Connection[Any]) -> None:
    fails(replica, sql)
    pass_time(sql, -365 * DAY)
    fails(replica, sql)
    pass_time(sql, DAY)
    fails(replica, sql)
    assert titles(replica) == [FAILED, FAILED]
