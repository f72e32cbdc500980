"""A dry run says what a run then does, leaves nothing behind, and is in nobody's way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import redis as redis_py
from psycopg import Connection
from psycopg import sql as query

from actors import SWEEPERS
from actors.agents_stale import AgentsStale, agents_stale
from actors.discover_scheduler import DiscoverScheduler, discover_scheduler
from actors.gitops_poller import gitops_poller
from actors.sessions_expired import SessionsExpired
from actors.wraps_expired import WrapsExpired, wraps_expired
from app.core.errors import NotDue, Reason, SweepFailed
from app.demo import data
from app.discovery.targets import parse
from app.sweeping import dry_run
from app.sweeping.lock import Tick
from app.sweeping.steering import pauses
from app.sweeping.sweeper import SweeperSettings
from tests.support import argocd
from tests.support.argocd import Argo, insert_endpoint, insert_observations
from tests.support.http_server import Receiver
from tests.support.replica import Replica
from tests.support.rows import (
    FIXED,
    column,
    insert_agent,
    insert_connection,
    insert_cross_team_request,
    insert_job,
    insert_reveal_session,
    insert_session,
    insert_wrap,
    rows,
)

TABLES = """
SELECT quote_ident(nspname) || '.' || quote_ident(relname) FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace
 WHERE relkind = 'r' AND nspname IN ('public', 'secrets_bridge_worker') ORDER BY 1
"""
#: Who made a row's version, and whether anybody who has come to an end has changed or deleted it.
VERSIONS = "SELECT count(*), md5(string_agg(ctid::text || xmin || t::text, ',' ORDER BY ctid)) FROM {} AS t"
LATER = FIXED + timedelta(days=36500)


def everything(sql: Connection[Any], redis: redis_py.Redis) -> dict[str, Any]:
    """Return what anybody could see of both servers."""
    found: dict[str, Any] = {
        table: rows(sql, query.SQL(VERSIONS).format(query.SQL(table)).as_string(sql)) for table in column(sql, TABLES)
    }
    return found | {str(key): redis.dump(key) for key in redis.scan_iter()}


def pile_up(sql: Connection[Any]) -> None:
    """Insert what is due, and what is not, of each sweeper."""
    data.pile_up(sql)
    sql.execute("DELETE FROM secret_wraps WHERE id IN (SELECT id FROM secret_wraps OFFSET 4000)")
    wrap = insert_wrap(sql, LATER)
    insert_reveal_session(sql, FIXED, [wrap, insert_wrap(sql, LATER)])
    insert_reveal_session(sql, LATER, [insert_wrap(sql, LATER)])
    insert_cross_team_request(sql, FIXED)
    insert_cross_team_request(sql, LATER)
    insert_session(sql, FIXED)
    insert_session(sql, LATER)
    stuck = insert_connection(sql, "stuck", last_status="running", started_at=FIXED)
    insert_job(sql, job_type="discover", claim_expires_at=FIXED, payload=json.dumps({"connection_id": stuck}))
    insert_connection(sql, "due")
    insert_connection(sql, "not due", last_at=LATER)
    endpoint = insert_endpoint(sql, "late", "http://127.0.0.1:1")
    (late, _) = insert_observations(sql, endpoint, "late", "in time")
    sql.execute("UPDATE gitops_observations SET timeout_at = '2026-01-01' WHERE id = %s", [late])


def own(sweeper: Any, url: str = "") -> SweeperSettings:
    if sweeper is gitops_poller:
        return argocd.settings()
    if sweeper.name == "sessions-expired":
        return SessionsExpired(interval=timedelta(hours=1))
    del url
    settings: SweeperSettings = sweeper.settings.read()
    return settings


@pytest.fixture
def plain(database: str) -> Iterator[Connection[Any]]:
    """Return a connection as the command has one."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.mark.parametrize(
    "sweeper", [each for each in SWEEPERS if each is not gitops_poller], ids=lambda each: each.name
)
def test_it_says_what_a_run_then_changes_and_leaves_nothing(
    sweeper: Any, replica: Replica, sql: Connection[Any], plain: Connection[Any]
) -> None:
    pile_up(sql)
    before = everything(sql, replica.redis)
    found = dry_run.look(plain, sweeper, own(sweeper), timedelta(minutes=1))
    assert everything(sql, replica.redis) == before
    sweep = replica.run(sweeper, own(sweeper))
    assert found.changed == sweep.changed > 0
    assert not found.more
    assert dict(found.counts) == {name: number for name, number in sweep.counts.items() if number}
    assert found.since is None or found.since < datetime.now(UTC)


def test_of_polls_it_says_how_many_are_due_and_asks_no_argocd(
    replica: Replica, sql: Connection[Any], plain: Connection[Any]
) -> None:
    with Receiver(Argo()) as server:
        endpoint = insert_endpoint(sql, "argo", server.url)
        insert_observations(sql, endpoint, *(f"app-{number}" for number in range(30)))
        resting = insert_endpoint(sql, "resting", "http://127.0.0.1:1")
        insert_observations(sql, resting, "resting")
        sql.execute(
            "INSERT INTO secrets_bridge_worker.gitops_rest VALUES (%s, now() + interval '10 min')",
            [resting],
        )
        before = everything(sql, replica.redis)
        found = dry_run.look(plain, gitops_poller, argocd.settings())
        assert (found.changed, dict(found.counts), found.more) == (0, {"due": 30}, False)
        assert everything(sql, replica.redis) == before
        assert server.seen == []
        counts = replica.run(gitops_poller, argocd.settings()).counts
    assert counts["succeeded"] + counts["failed"] == 30


def test_targets_of_the_environment_are_counted_as_well(replica: Replica, sql: Connection[Any], plain: Any) -> None:
    data.pile_up(sql)
    settings = DiscoverScheduler(targets=parse(data.TARGETS))
    found = dry_run.look(plain, discover_scheduler, settings)
    assert found.changed == replica.run(discover_scheduler, settings).changed == 3


def test_it_takes_no_lock_of_a_target(replica: Replica, sql: Connection[Any], plain: Connection[Any]) -> None:
    """An admin who wants that connection discovered is not refused for it, nor is our own next run."""
    insert_connection(sql, "due")
    assert dry_run.look(plain, discover_scheduler, DiscoverScheduler()).changed == 1
    assert replica.redis.keys("*") == []


def test_it_looks_while_the_lock_is_held_and_the_sweeper_is_paused_and_its_slot_was_run(
    replica: Replica, sql: Connection[Any], plain: Connection[Any]
) -> None:
    replica.run(wraps_expired, WrapsExpired())
    insert_wrap(sql, FIXED)
    pauses.pause(sql, ["wraps-expired"], timedelta(hours=1), "x", "y")
    tick = replica.acquire(wraps_expired, WrapsExpired())
    assert isinstance(tick, Tick)
    found = dry_run.look(plain, wraps_expired, WrapsExpired())
    assert (found.changed, found.since) == (1, FIXED)
    replica.locks.release(tick, done=False)


def test_it_ends_at_so_many_rows(sql: Connection[Any], plain: Connection[Any]) -> None:
    sql.execute(
        "INSERT INTO secret_wraps (encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash, byte_length,"
        " expires_at) SELECT '\\x01', '\\x02', '\\x03', 'k', '\\x04', 1, '2026-01-01' FROM generate_series(1, 30000)"
    )
    found = dry_run.look(plain, wraps_expired, WrapsExpired(), timedelta(minutes=1))
    assert (found.changed, found.more) == (dry_run.MOST_ROWS, True)


def test_it_ends_with_its_time_in_the_middle_of_a_statement(sql: Connection[Any], plain: Connection[Any]) -> None:
    insert_agent(sql, "old", last_seen_at=FIXED)
    sql.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(600); RETURN NEW; END $$"
    )
    sql.execute("CREATE TRIGGER slow BEFORE UPDATE ON agents FOR EACH ROW EXECUTE FUNCTION slow()")
    found = dry_run.look(plain, agents_stale, AgentsStale(), timedelta(milliseconds=200))
    assert (found.changed, found.more) == (0, True)


def test_what_others_hold_is_not_waited_for(database: str, sql: Connection[Any], plain: Connection[Any]) -> None:
    held = insert_wrap(sql, FIXED)
    insert_wrap(sql, FIXED)
    with psycopg.connect(database) as other:
        other.execute("SELECT FROM secret_wraps WHERE id = %s FOR UPDATE", [held])
        found = dry_run.look(plain, wraps_expired, WrapsExpired(), timedelta(minutes=1))
    assert (found.changed, dict(found.counts)) == (1, {"skipped_locked": 1})


def test_rows_that_fail_are_counted_and_what_fails_in_any_case_is_told(
    sql: Connection[Any], plain: Connection[Any]
) -> None:
    insert_agent(sql, "canary", last_seen_at=FIXED)
    insert_agent(sql, "fine", last_seen_at=FIXED)
    sql.execute("ALTER TABLE agents ADD CONSTRAINT odd CHECK (name <> 'canary' OR status <> 'stale')")
    found = dry_run.look(plain, agents_stale, AgentsStale(), timedelta(minutes=1))
    assert (found.changed, dict(found.counts)) == (1, {"rows_failed": 1})
    sql.execute("ALTER TABLE agents RENAME COLUMN status TO state")
    with pytest.raises(SweepFailed) as failed:
        dry_run.look(plain, agents_stale, AgentsStale())
    assert str(failed.value) == "UndefinedColumn 42703"


def test_it_needs_no_privilege_that_a_run_does_not_and_none_on_our_schema(
    database: str, role: str, sql: Connection[Any]
) -> None:
    insert_wrap(sql, FIXED)
    sql.execute(f"GRANT SELECT, UPDATE, DELETE ON secret_wraps TO {role}".encode())
    with psycopg.connect(database, user=role, autocommit=True) as plain:
        assert dry_run.look(plain, wraps_expired, WrapsExpired()).changed == 1


def test_a_missing_table_is_told(sql: Connection[Any], plain: Connection[Any]) -> None:
    sql.execute("ALTER TABLE agents RENAME TO elsewhere")
    with pytest.raises(NotDue) as refused:
        dry_run.look(plain, agents_stale, AgentsStale())
    assert refused.value.reason is Reason.TABLE_MISSING


def test_a_connection_that_goes_away_is_told(plain: Connection[Any]) -> None:
    gone = replace(wraps_expired, strategy=lambda settings: plain.close() or wraps_expired.strategy(settings))  # type: ignore[func-returns-value]
    with pytest.raises(SweepFailed):
        dry_run.look(plain, gone, WrapsExpired())


def test_a_row_of_before_our_era_is_counted_like_any_other(sql: Connection[Any], plain: Connection[Any]) -> None:
    insert_wrap(sql, FIXED)
    sql.execute("UPDATE secret_wraps SET expires_at = '0044-03-15 BC'")
    assert dry_run.look(plain, wraps_expired, WrapsExpired()).changed == 1
