"""A run that fails gives its slot back, tells what it had done, and is told of once."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
import redis as redis_py
from psycopg import Connection

from actors.agents_stale import AgentsStale, agents_stale
from actors.wraps_expired import WrapsExpired, wraps_expired
from app.core.errors import NotDue
from app.core.events import Severity
from app.sweeping.ledger import failures
from app.sweeping.lock import Tick
from app.sweeping.runner import RunFailed
from app.sweeping.scans.batch_size import BatchSizer
from app.sweeping.strategy import Run
from tests.support.replica import Replica
from tests.support.rows import column, insert_agent, rows
from tests.sweeping.runs.looking import (
    PAST,
    RUNS,
    STEADY,
    expired,
    now_slot,
    wrapped,
)


def test_a_failed_run_gives_its_slot_back_and_shows_no_row_content(replica: Replica, sql: Connection[Any]) -> None:
    insert_agent(sql, "canary-agent", last_seen_at=PAST)
    sql.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE insufficient_privilege USING MESSAGE = 'no: ' || NEW.name; END $$"
    )
    sql.execute("CREATE TRIGGER refuse BEFORE UPDATE ON agents FOR EACH ROW EXECUTE FUNCTION refuse()")
    slot = now_slot(sql, STEADY)

    error = replica.fails(agents_stale, AgentsStale(interval=STEADY), slot)

    assert str(error) == "InsufficientPrivilege 42501"
    assert error.__cause__ is None
    assert error.__suppress_context__
    (run,) = rows(sql, RUNS)
    assert (run["outcome"], run["error_class"], run["sqlstate"]) == ("failure", "InsufficientPrivilege", "42501")
    sql.execute("DROP TRIGGER refuse ON agents")
    assert replica.run(agents_stale, AgentsStale(interval=STEADY), slot).changed == 1
    assert "canary" not in json.dumps([repr(replica.events), repr(rows(sql, RUNS)), str(error)])


def test_a_run_whose_last_commit_got_through_keeps_its_slot(replica: Replica, sql: Connection[Any]) -> None:
    class Unheard(Exception):
        """The commit was done; its answer was lost."""

    def unheard(_seconds: float) -> None:
        raise Unheard

    expired(sql, 10)
    slot = now_slot(sql, STEADY)
    replica.runner.on_batch = unheard
    replica.fails(wraps_expired, WrapsExpired(interval=STEADY), slot)
    assert sorted(run["outcome"] for run in rows(sql, RUNS)) == ["failure", "success"]
    replica.runner.on_batch = lambda _seconds: None
    with pytest.raises(NotDue):
        replica.run(wraps_expired, WrapsExpired(interval=STEADY), slot)


def test_a_run_that_fails_by_a_lost_answer_reports_what_was_committed(replica: Replica, sql: Connection[Any]) -> None:
    class Unheard(Exception):
        """The commit was done; its answer was lost."""

    expired(sql, 300)
    batches = []

    def slow(_run: Run, sizer: BatchSizer) -> None:
        sizer.rows = 100

    def second_unheard(_seconds: float) -> None:
        batches.append(1)
        if len(batches) == 2:
            raise Unheard

    replica.runner.on_batch = second_unheard
    replica.fails(wrapped(wraps_expired, slow), WrapsExpired())
    (run,) = rows(sql, RUNS)
    assert (run["outcome"], run["batches"]) == ("failure", 2)
    assert run["changed"] == 300 - column(sql, "SELECT count(*) FROM secret_wraps")[0]
    assert dict(replica.events[0].metadata) == {"deleted": run["changed"]}


def test_one_error_event_for_a_streak_of_failures_and_one_at_its_end(replica: Replica, sql: Connection[Any]) -> None:
    sql.execute("REVOKE ALL ON agents FROM PUBLIC")
    sql.execute("ALTER TABLE agents RENAME COLUMN status TO state")
    for _ in range(3):
        replica.fails(agents_stale, AgentsStale())
    sql.execute("ALTER TABLE agents RENAME COLUMN state TO status")
    replica.run(agents_stale, AgentsStale())
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = 'epoch'")

    told = [(event.severity, event.title, event.detail, dict(event.metadata)) for event in replica.events]
    assert told == [
        (Severity.ERROR, "flag stale agents failed", "UndefinedColumn 42703", {}),
        (Severity.INFO, "sweep recovered", "", {"failed_attempts": 3}),
    ]


def test_a_run_that_fails_after_some_batches_reports_what_it_had_done(replica: Replica, sql: Connection[Any]) -> None:
    expired(sql, 300)
    batches = []

    def second_fails(run: Run, sizer: BatchSizer) -> None:
        batches.append(run)
        sizer.rows = 100
        if len(batches) == 2:
            run.cursor.execute("SELECT * FROM no_such_table")

    replica.fails(wrapped(wraps_expired, second_fails), WrapsExpired())
    (run,) = rows(sql, RUNS)
    assert (run["outcome"], run["sqlstate"]) == ("failure", "42P01")
    assert 0 < run["changed"] < 300
    assert [event.title for event in replica.events] == ["expired wraps purged", "delete expired wraps failed"]
    assert replica.run(wraps_expired, WrapsExpired()).changed == 300 - run["changed"]


def test_a_slot_whose_failure_could_not_be_written_down_is_run_by_its_retry(
    replica: Replica, sql: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL went away in the middle of the run, and stayed away while the failure was to be written."""
    expired(sql, 300)
    slot = now_slot(sql, STEADY)

    def gone(run: Run, sizer: BatchSizer) -> None:
        sizer.rows = 100
        if rows(sql, RUNS):
            run.cursor.connection.close()

    with monkeypatch.context() as away:
        away.setattr(failures, "fail", lambda *_: (_ for _ in ()).throw(psycopg.OperationalError))
        replica.fails(wrapped(wraps_expired, gone), WrapsExpired(interval=STEADY), slot)
    (run,) = rows(sql, RUNS)
    changed, rest = run["changed"], 300 - run["changed"]
    assert run["outcome"] == "running"
    assert 0 < changed < 300

    assert replica.run(wraps_expired, WrapsExpired(interval=STEADY), slot).changed == rest
    assert [(run["outcome"], run["changed"]) for run in rows(sql, RUNS)] == [
        ("interrupted", changed),
        ("success", rest),
    ]
    assert [dict(event.metadata) for event in replica.events] == [
        {"deleted": changed, "interrupted": 1},
        {"deleted": rest},
    ]


def test_a_failure_that_could_not_be_stored_is_reported_by_the_next_that_can(
    replica: Replica, sql: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sql.execute("ALTER TABLE agents RENAME COLUMN status TO state")
    for _ in range(3):
        with monkeypatch.context() as away:
            away.setattr(failures, "record_failed", lambda *_, **__: (_ for _ in ()).throw(psycopg.OperationalError))
            replica.fails(agents_stale, AgentsStale())
    assert replica.events == []
    for _ in range(2):
        replica.fails(agents_stale, AgentsStale())
    assert [event.title for event in replica.events] == ["flag stale agents failed"]
    sql.execute("ALTER TABLE agents RENAME COLUMN state TO status")
    replica.run(agents_stale, AgentsStale())
    assert [event.title for event in replica.events] == ["flag stale agents failed", "sweep recovered"]


def test_what_was_never_reported_is_not_reported_as_over(
    replica: Replica, sql: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sql.execute("ALTER TABLE agents RENAME COLUMN status TO state")
    with monkeypatch.context() as away:
        away.setattr(failures, "record_failed", lambda *_, **__: (_ for _ in ()).throw(psycopg.OperationalError))
        replica.fails(agents_stale, AgentsStale())
    sql.execute("ALTER TABLE agents RENAME COLUMN state TO status")
    replica.run(agents_stale, AgentsStale())
    assert replica.events == []


def test_the_end_of_an_incident_is_reported_although_redis_was_wiped_in_it(
    replica: Replica, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    sql.execute("ALTER TABLE agents RENAME COLUMN status TO state")
    replica.fails(agents_stale, AgentsStale())
    redis.flushall()
    sql.execute("ALTER TABLE agents RENAME COLUMN state TO status")
    replica.run(agents_stale, AgentsStale())
    assert [event.title for event in replica.events] == ["flag stale agents failed", "sweep recovered"]


def test_a_failed_run_lets_go_of_its_lock_before_it_writes_the_failure_down(
    replica: Replica, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    sql.execute("ALTER TABLE agents RENAME COLUMN status TO state")
    tick = replica.acquire(agents_stale, AgentsStale())
    assert isinstance(tick, Tick)
    with pytest.raises(RunFailed) as failed:
        replica.runner.run(agents_stale, AgentsStale(), tick)
    assert rows(sql, RUNS) == []  # not by the run itself, whose lock is held
    replica.locks.release(tick, done=False)
    failed.value.write_down()
    assert redis.keys("*agents-stale*") == []
    assert [run["outcome"] for run in rows(sql, RUNS)] == ["failure"]
