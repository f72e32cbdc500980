"""Each SQL sweeper on both sides of its cutoff, by the database's clock.

A cutoff cannot be hit by rows that were inserted before it is taken, so rows stand a second to each side, and the row
exactly on it is made by the batch's own statement, in the transaction whose now() is the cutoff.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest
import redis as redis_py
from psycopg import Connection
from psycopg.rows import dict_row

from actors.agents_stale import AgentsStale, agents_stale
from actors.cross_team_fill_window_expired import CrossTeamFillWindowExpired, cross_team_fill_window_expired
from actors.jobs_recovery import JobsRecovery, jobs_recovery
from actors.reveal_sessions_expired import reveal_sessions_expired
from actors.secrets_stale import SecretsStale, secrets_stale
from actors.sessions_expired import SessionsExpired, sessions_expired
from actors.wraps_expired import WrapsExpired, wraps_expired
from app.core.errors import NotDue
from app.sweeping.strategy import Run
from app.sweeping.sweeper import Sweeper, SweeperSettings
from tests.support.replica import Replica
from tests.support.rows import (
    FIXED,
    column,
    insert_agent,
    insert_cross_team_request,
    insert_job,
    insert_reveal_session,
    insert_secret,
    insert_session,
    insert_wrap,
    rows,
)

SECOND = timedelta(seconds=1)
TICK = timedelta(microseconds=1)


def once(database: str, sweeper: Sweeper[Any], settings: SweeperSettings) -> dict[str, int]:
    """Do one step at the fixed time."""
    with psycopg.connect(database) as connection:
        strategy = sweeper.strategy(settings)
        cursor = connection.cursor(row_factory=dict_row)
        run = Run(cursor, sweeper.table, slot=0, now=FIXED, cutoff=FIXED - strategy.older_than, pages=1)
        strategy.ask(run)
        counts = dict(strategy.step(run, over=False).counts)
        assert counts.pop("skipped_locked", 0) == 0
        return counts


def stamps(sql: Connection[Any]) -> dict[str, Any]:
    """Return when each secret was last written."""
    return {row["secret_ref"]: row["updated_at"] for row in rows(sql, "SELECT secret_ref, updated_at FROM secrets")}


@pytest.mark.parametrize("consumed", [True, False])
def test_wraps_are_deleted_at_their_expiry_and_not_before(database: str, sql: Connection[Any], consumed: bool) -> None:
    gone = [insert_wrap(sql, FIXED - ago, consumed=consumed) for ago in (SECOND, TICK, timedelta(0))]
    kept = [insert_wrap(sql, FIXED + ahead, consumed=consumed) for ahead in (TICK, SECOND)]

    assert once(database, wraps_expired, WrapsExpired()) == {"changed": 3}

    left = column(sql, "SELECT id::text FROM secret_wraps")
    assert sorted(left) == sorted(kept)
    assert not set(left) & set(gone)


def test_a_retention_keeps_expired_wraps_for_so_long(database: str, sql: Connection[Any]) -> None:
    settings = WrapsExpired(retention=timedelta(minutes=10))
    insert_wrap(sql, FIXED - timedelta(minutes=10))
    kept = insert_wrap(sql, FIXED - timedelta(minutes=10) + TICK)

    assert once(database, wraps_expired, settings) == {"changed": 1}
    assert column(sql, "SELECT id::text FROM secret_wraps") == [kept]


def test_secrets_unseen_for_longer_than_the_cutoff_become_missing(database: str, sql: Connection[Any]) -> None:
    day = timedelta(hours=24)
    insert_secret(sql, "before", FIXED - day - SECOND)
    insert_secret(sql, "just-before", FIXED - day - TICK)
    insert_secret(sql, "on", FIXED - day)
    insert_secret(sql, "after", FIXED - day + SECOND)
    insert_secret(sql, "already", FIXED - 3 * day, status="missing")
    sql.execute("UPDATE secrets SET updated_at = '2020-01-01'")  # the trigger overwrites it; a mark is what counts
    touched = stamps(sql)

    assert once(database, secrets_stale, SecretsStale()) == {"changed": 2}

    status = {row["secret_ref"]: row["status"] for row in rows(sql, "SELECT secret_ref, status FROM secrets")}
    assert status == {
        "before": "missing",
        "just-before": "missing",
        "on": "present",
        "after": "present",
        "already": "missing",
    }
    again = stamps(sql)
    assert {ref for ref in touched if again[ref] != touched[ref]} == {"before", "just-before"}


def test_active_agents_without_a_heartbeat_become_stale(database: str, sql: Connection[Any]) -> None:
    five = timedelta(minutes=5)
    insert_agent(sql, "before", last_seen_at=FIXED - five - SECOND)
    insert_agent(sql, "just-before", last_seen_at=FIXED - five - TICK)
    insert_agent(sql, "on", last_seen_at=FIXED - five)
    insert_agent(sql, "after", last_seen_at=FIXED - five + SECOND)
    insert_agent(sql, "never", last_seen_at=None)
    for status in ("enrolled", "error", "disabled", "revoked", "stale"):
        insert_agent(sql, status, status=status, last_seen_at=FIXED - 2 * five)

    assert once(database, agents_stale, AgentsStale()) == {"changed": 2}

    states = {row["name"]: row["status"] for row in rows(sql, "SELECT name, status FROM agents")}
    stale = {name for name, state in states.items() if state == "stale"}
    assert stale == {"before", "just-before", "stale"}
    assert states["never"] == "active"
    assert all(states[state] == state for state in ("enrolled", "error", "disabled", "revoked"))


def test_jobs_with_a_dead_claim_expire_and_are_counted_by_type(database: str, sql: Connection[Any]) -> None:
    request = column(
        sql,
        "INSERT INTO access_requests (requester_id, type, justification)"
        " VALUES (gen_random_uuid()::text, 'update', 'test') RETURNING id::text",
    )[0]
    dead = [
        insert_job(sql, job_type="sync", claim_expires_at=FIXED - SECOND),
        insert_job(sql, job_type="patch", claim_expires_at=FIXED - TICK, request_id=request),
        insert_job(sql, job_type="patch", claim_expires_at=FIXED - SECOND),
    ]
    insert_job(sql, claim_expires_at=FIXED)
    insert_job(sql, claim_expires_at=FIXED + SECOND)
    insert_job(sql, claim_expires_at=None)
    for status in ("queued", "succeeded", "failed", "expired"):
        insert_job(sql, status=status, claim_expires_at=FIXED - SECOND)

    counts = once(database, jobs_recovery, JobsRecovery())

    assert {name: number for name, number in counts.items() if number} == {
        "changed": 3,
        "sync": 1,
        "patch": 2,
        "with_request": 1,
    }
    expired = column(sql, "SELECT id::text FROM sync_jobs WHERE status = 'expired'")
    assert set(dead) < set(expired)
    assert len(expired) == 4


def test_a_grace_leaves_dead_claims_to_other_agents_for_so_long(database: str, sql: Connection[Any]) -> None:
    settings = JobsRecovery(grace=timedelta(seconds=10))
    insert_job(sql, claim_expires_at=FIXED - timedelta(seconds=10))
    dead = insert_job(sql, claim_expires_at=FIXED - timedelta(seconds=10) - TICK)

    assert once(database, jobs_recovery, settings)["changed"] == 1
    assert column(sql, "SELECT id::text FROM sync_jobs WHERE status = 'expired'") == [dead]


def test_cross_team_requests_expire_with_their_window(database: str, sql: Connection[Any]) -> None:
    over = [insert_cross_team_request(sql, FIXED - ago) for ago in (SECOND, TICK, timedelta(0))]
    insert_cross_team_request(sql, FIXED + TICK)
    insert_cross_team_request(sql, FIXED + SECOND)
    insert_cross_team_request(sql, None)
    for status in ("pending", "pending_verification", "refused", "approved", "cancelled"):
        insert_cross_team_request(sql, FIXED - SECOND, status=status)

    assert once(database, cross_team_fill_window_expired, CrossTeamFillWindowExpired()) == {"changed": 3}

    assert sorted(column(sql, "SELECT id::text FROM access_requests WHERE status = 'expired'")) == sorted(over)


def test_a_fill_and_the_end_of_its_window_exclude_each_other(
    database: str, replica: Replica, sql: Connection[Any]
) -> None:
    fill = (
        "UPDATE access_requests SET status = 'pending_verification', filled_at = now()"
        " WHERE id = %s AND status = 'pending_values'"
    )
    filled, late = insert_cross_team_request(sql, FIXED), insert_cross_team_request(sql, FIXED)
    with psycopg.connect(database) as api:
        api.execute(fill, [filled])
        assert replica.run(cross_team_fill_window_expired, CrossTeamFillWindowExpired()).changed == 1
        api.commit()
    replica.next_slot()
    assert replica.run(cross_team_fill_window_expired, CrossTeamFillWindowExpired()).changed == 0
    assert sql.execute(fill.encode(), [late]).rowcount == 0
    states = {row["id"]: row["status"] for row in rows(sql, "SELECT id::text, status FROM access_requests")}
    assert states == {filled: "pending_verification", late: "expired"}


def test_an_older_api_has_no_fill_window_and_the_sweep_rests(replica: Replica, sql: Connection[Any]) -> None:
    insert_cross_team_request(sql, FIXED)
    sql.execute("ALTER TABLE access_requests RENAME fill_expires_at TO elsewhere")
    with pytest.raises(NotDue):
        replica.run(cross_team_fill_window_expired, CrossTeamFillWindowExpired())
    sql.execute("ALTER TABLE access_requests RENAME elsewhere TO fill_expires_at")
    assert replica.run(cross_team_fill_window_expired, CrossTeamFillWindowExpired()).changed == 1


def test_login_sessions_are_deleted_at_their_absolute_end(database: str, sql: Connection[Any]) -> None:
    for ago in (SECOND, TICK, timedelta(0)):
        insert_session(sql, FIXED - ago)
    kept = [insert_session(sql, FIXED + ahead) for ahead in (TICK, SECOND)]
    sql.execute("UPDATE sessions SET revoked_at = now(), idle_expires_at = '2020-01-01' WHERE expires_at > %s", [FIXED])

    assert once(database, sessions_expired, SessionsExpired()) == {"changed": 3}
    assert sorted(column(sql, "SELECT id::text FROM sessions")) == sorted(kept)


def test_sessions_are_deleted_only_where_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not SessionsExpired.read().enabled
    monkeypatch.setenv("SB_SWEEP_SESSIONS_INTERVAL", "1h")
    assert SessionsExpired.read().enabled


@pytest.mark.parametrize(
    "sweeper",
    [
        wraps_expired,
        secrets_stale,
        agents_stale,
        jobs_recovery,
        cross_team_fill_window_expired,
        reveal_sessions_expired,
        sessions_expired,
    ],
    ids=lambda s: s.name,
)
def test_a_run_takes_its_cutoff_from_the_database_and_a_second_one_changes_nothing(
    replica: Replica, sql: Connection[Any], redis: redis_py.Redis, sweeper: Sweeper[Any]
) -> None:
    settings = sweeper.settings()
    now = sql.execute("SELECT now()").fetchone()
    assert now is not None
    cutoff = now[0] - sweeper.strategy(settings).older_than
    for side in (-timedelta(minutes=1), timedelta(minutes=1)):
        insert_wrap(sql, cutoff + side)
        insert_secret(sql, f"secret{side}", cutoff + side)
        insert_agent(sql, f"agent{side}", last_seen_at=cutoff + side)
        insert_job(sql, claim_expires_at=cutoff + side)
        insert_cross_team_request(sql, cutoff + side)
        insert_reveal_session(sql, cutoff + side, [])
        insert_session(sql, cutoff + side)

    first = replica.run(sweeper, settings, slot=None)
    assert first.changed == 1
    assert first.cutoff is not None
    assert abs(first.cutoff - cutoff) < timedelta(seconds=30)

    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = 'epoch'")
    sql.execute("UPDATE secrets_bridge_worker.sweep_run SET slot = 'epoch'")
    redis.flushall()
    assert replica.run(sweeper, settings, slot=None).changed == 0
