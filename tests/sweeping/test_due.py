"""What is due is counted by the sweep's own condition, and never at the price of reading a large table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import dict_row

from actors import SWEEPERS
from actors.agents_stale import AgentsStale, agents_stale
from actors.gitops_poller import GitopsPoller, gitops_poller
from actors.jobs_recovery import JobsRecovery, jobs_recovery
from actors.secrets_stale import SecretsStale, secrets_stale
from actors.wraps_expired import WrapsExpired, wraps_expired
from app.sweeping.scans import due
from app.sweeping.scans.due import Backlog, Due
from app.sweeping.sweeper import Sweeper, SweeperSettings
from tests.support.replica import Replica
from tests.support.rows import insert_agent, insert_job, insert_reveal_session, insert_secret, insert_wrap

HOUR = timedelta(hours=1)


def backlog(sql: Connection[Any], sweeper: Sweeper[Any], settings: SweeperSettings) -> Backlog | None:
    due_by = sweeper.backlog(settings)
    assert due_by is not None
    with sql.transaction():
        return due_by.count(sql.cursor(row_factory=dict_row))


@pytest.fixture
def now(sql: Connection[Any]) -> datetime:
    row = sql.execute("SELECT now()").fetchone()
    assert row is not None
    moment: datetime = row[0]
    return moment


def test_every_sweeper_says_what_is_due(sql: Connection[Any]) -> None:
    for sweeper in SWEEPERS:
        assert backlog(sql, sweeper, sweeper.settings.read()) == Backlog(0, None), sweeper.name


def test_the_count_is_what_the_next_run_changes_and_since_when(
    sql: Connection[Any], replica: Replica, now: datetime
) -> None:
    for hours in (1, 2, 3):
        insert_wrap(sql, now - hours * HOUR)
        insert_secret(sql, str(hours), now - 24 * HOUR - hours * HOUR)
        insert_agent(sql, str(hours), last_seen_at=now - hours * HOUR)
        insert_job(sql, claim_expires_at=now - hours * HOUR)
    insert_wrap(sql, now + HOUR)
    insert_secret(sql, "fresh", now)
    insert_agent(sql, "fresh", last_seen_at=now)
    insert_job(sql, claim_expires_at=now + HOUR)
    minutes = timedelta(minutes=5)
    pairs: list[tuple[Sweeper[Any], SweeperSettings, datetime]] = [
        (wraps_expired, WrapsExpired(), now - 3 * HOUR),
        (secrets_stale, SecretsStale(), now - 3 * HOUR),
        (agents_stale, AgentsStale(), now - 3 * HOUR + minutes),
        (jobs_recovery, JobsRecovery(), now - 3 * HOUR),
    ]
    for sweeper, settings, since in pairs:
        assert backlog(sql, sweeper, settings) == Backlog(3, since), sweeper.name
        assert replica.run(sweeper, settings).changed == 3
        assert backlog(sql, sweeper, settings) == Backlog(0, None)


def test_what_a_session_keeps_is_not_due(sql: Connection[Any], replica: Replica, now: datetime) -> None:
    kept, gone = insert_wrap(sql, now - HOUR), insert_wrap(sql, now - 2 * HOUR)
    insert_reveal_session(sql, now, wraps=[kept])
    settings = WrapsExpired(session_retention=HOUR)

    assert backlog(sql, wraps_expired, settings) == Backlog(1, now - 2 * HOUR)
    assert replica.run(wraps_expired, settings).changed == 1
    assert [row[0] for row in sql.execute("SELECT id::text FROM secret_wraps")] == [kept]
    assert gone != kept


def test_more_than_are_counted_are_more(sql: Connection[Any], now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(due, "MOST_COUNTED", 2)
    for hours in (3, 1, 2):
        insert_wrap(sql, now - hours * HOUR)

    assert backlog(sql, wraps_expired, WrapsExpired()) == Backlog(2, now - 3 * HOUR, more=True)


def test_a_time_without_a_beginning_is_due_since_nobody_knows_when(sql: Connection[Any]) -> None:
    sql.execute(
        "INSERT INTO agents (name, secret_hash, status, last_seen_at) VALUES ('a', '\\x01', 'active', '-infinity')"
    )

    assert backlog(sql, agents_stale, AgentsStale()) == Backlog(1, None)


def test_a_large_table_is_counted_by_an_index_or_not_at_all(
    sql: Connection[Any], now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert_wrap(sql, now - HOUR)
    monkeypatch.setattr(due, "LARGE", 1)
    assert backlog(sql, wraps_expired, WrapsExpired()) is None

    sql.execute("CREATE INDEX ON secret_wraps (expires_at)")
    assert backlog(sql, wraps_expired, WrapsExpired()) == Backlog(1, now - HOUR)


def test_an_observation_is_due_an_interval_after_its_last_poll(sql: Connection[Any]) -> None:
    assert gitops_poller.backlog(GitopsPoller()).older_than == GitopsPoller().interval  # type: ignore[union-attr]


@pytest.mark.parametrize("year", ["0044-01-01 BC", "4713-01-01 BC", "0001-01-01"])
def test_rows_of_a_year_that_python_has_not_are_counted_and_known_as_old(sql: Connection[Any], year: str) -> None:
    insert_wrap(sql, datetime(2026, 1, 1, tzinfo=UTC))
    sql.execute("UPDATE secret_wraps SET expires_at = %s", [year])
    counted = backlog(sql, wraps_expired, WrapsExpired())
    assert counted is not None
    assert (counted.rows, counted.since) == (1, datetime(1, 1, 2, tzinfo=UTC))


def test_a_moment_beyond_the_last_year_is_the_last_one(sql: Connection[Any]) -> None:
    insert_wrap(sql, datetime(2026, 1, 1, tzinfo=UTC))
    late = Due("secret_wraps", "expires_at > now()", "expires_at", older_than=HOUR)
    sql.execute("UPDATE secret_wraps SET expires_at = '294000-01-01'")
    with sql.transaction():
        counted = late.count(sql.cursor(row_factory=dict_row))
    assert counted == Backlog(1, datetime(9999, 12, 30, tzinfo=UTC))
