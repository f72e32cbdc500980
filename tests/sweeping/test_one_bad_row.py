"""What cannot be swept hurts only itself; what is slow is done in pieces; what others hold is left for later."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from actors.agents_stale import FLIP, AgentsStale, agents_stale
from actors.gitops_timeout import GitopsTimeout, gitops_timeout
from actors.jobs_recovery import JobsRecovery, jobs_recovery
from actors.wraps_expired import PAGES, WrapsExpired, wraps_expired
from app.core.events import Kind
from app.sweeping.scans.batch_size import FEWEST_ROWS
from app.sweeping.scans.page_scan import PageScan
from app.sweeping.scans.scan import GENTLE_STEPS
from app.sweeping.strategy import Passing, Strategy
from tests.support.argocd import insert_endpoint, insert_observations
from tests.support.replica import Replica
from tests.support.rights.grants import granted
from tests.support.rows import column, insert_agent, insert_wrap, rows

RUNS = "SELECT * FROM secrets_bridge_worker.sweep_run ORDER BY id"
PAST = datetime(2026, 1, 1, tzinfo=UTC)
ACTIVE = "SELECT name FROM agents WHERE status = 'active' ORDER BY name"


def agents(sql: Connection[Any], number: int) -> None:
    sql.execute(
        "INSERT INTO agents (name, secret_hash, status, last_seen_at, scope)"
        " SELECT 'a' || n, '\\x01', 'active', '2026-01-01', '{}' FROM generate_series(1, %s) AS n",
        [number],
    )


def wraps(sql: Connection[Any], number: int, expires_at: str) -> None:
    sql.execute(
        "INSERT INTO secret_wraps (encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash, byte_length,"
        f" expires_at) SELECT '\\x01', '\\x02', '\\x03', 'k', '\\x04', 1, {expires_at}"
        " FROM generate_series(1, %s) AS n".encode(),
        [number],
    )


def raise_for(sql: Connection[Any], table: str, condition: str, action: str = "UPDATE") -> None:
    """Have a trigger raise for the rows that a condition on OLD chooses."""
    sql.execute(
        f"CREATE FUNCTION bad() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {condition} THEN"
        " RAISE EXCEPTION 'canary'; END IF; RETURN coalesce(NEW, OLD); END $$".encode()
    )
    sql.execute(f"CREATE TRIGGER bad BEFORE {action} ON {table} FOR EACH ROW EXECUTE FUNCTION bad()".encode())


def an_hour_passes(replica: Replica, sql: Connection[Any]) -> None:
    """Make the slots that were run older, so that the next run finds a new one."""
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = last_slot - interval '1 h'")
    sql.execute(
        "UPDATE secrets_bridge_worker.sweep_run SET slot = slot - id * interval '1 h'"
        " WHERE slot > now() - interval '30 min'"
    )
    replica.redis.flushall()


@pytest.mark.parametrize("bad", [("a1",), ("a5000",), ("a9999", "a10000"), ("a17", "a18", "a4000")])
def test_rows_that_cannot_be_written_are_stepped_around_and_counted(
    replica: Replica, sql: Connection[Any], bad: tuple[str, ...]
) -> None:
    agents(sql, 10_000)
    raise_for(sql, "agents", "OLD.name IN ({})".format(", ".join(f"'{name}'" for name in bad)))
    replica.runner.budget = timedelta(hours=1)

    sweep = replica.run(agents_stale, AgentsStale())

    assert sorted(column(sql, ACTIVE)) == sorted(bad)
    assert (sweep.changed, sweep.counts["rows_failed"]) == (10_000 - len(bad), len(bad))
    (run,) = rows(sql, RUNS)
    assert (run["outcome"], run["changed"]) == ("success", 10_000 - len(bad))
    (notice,) = [event for event in replica.events if event.kind is Kind.NOTICE]
    assert dict(notice.metadata) == {"rows_failed": len(bad)}
    assert "canary" not in repr(replica.events)


def test_rows_that_cannot_be_written_are_reported_once_and_again_when_they_are_new(
    replica: Replica, sql: Connection[Any]
) -> None:
    insert_agent(sql, "a1", last_seen_at=PAST)
    raise_for(sql, "agents", "OLD.name = 'a1'")

    def sweep() -> int:
        an_hour_passes(replica, sql)
        replica.run(agents_stale, AgentsStale())
        return len([event for event in replica.events if event.kind is Kind.NOTICE])

    assert [sweep(), sweep()] == [1, 1]
    sql.execute("ALTER TABLE agents DISABLE TRIGGER bad")
    assert sweep() == 1
    sql.execute("UPDATE agents SET status = 'active'")
    sql.execute("ALTER TABLE agents ENABLE TRIGGER bad")
    assert sweep() == 2


def test_an_index_scan_steps_around_as_well(replica: Replica, sql: Connection[Any]) -> None:
    endpoint = insert_endpoint(sql, "main", "https://argocd.example.com")
    names = [f"app-{number:02}" for number in range(40)]
    insert_observations(sql, endpoint, *names, polling_state="active")
    sql.execute("UPDATE gitops_observations SET timeout_at = '2026-01-01'")
    raise_for(sql, "gitops_observations", "OLD.application_name IN ('app-00', 'app-07', 'app-39')")

    sweep = replica.run(gitops_timeout, GitopsTimeout())

    query = "SELECT application_name FROM gitops_observations WHERE polling_state = 'active' ORDER BY 1"
    assert column(sql, query) == ["app-00", "app-07", "app-39"]
    assert (sweep.changed, sweep.counts["rows_failed"]) == (37, 3)


def test_a_statement_that_fails_whatever_the_row_fails_the_run_at_once(replica: Replica, sql: Connection[Any]) -> None:
    agents(sql, 1000)
    sql.execute("ALTER TABLE agents RENAME COLUMN status TO state")
    assert str(replica.fails(agents_stale, AgentsStale())) == "UndefinedColumn 42703"
    assert rows(sql, RUNS)[0]["batches"] == 0


def test_more_bad_rows_than_a_run_steps_around_do_not_keep_the_good_ones_behind_them(
    replica: Replica, sql: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.sweeping.runner.MOST_ROWS_FAILED", 100)
    agents(sql, 2000)
    raise_for(sql, "agents", "substr(OLD.name, 2)::int <= 1500")
    replica.runner.budget = timedelta(hours=1)
    runs = 0
    while len(column(sql, ACTIVE)) > 1500 and runs < 50:
        an_hour_passes(replica, sql)
        replica.run(agents_stale, AgentsStale())
        runs += 1
    assert len(column(sql, ACTIVE)) == 1500
    ledger = rows(sql, RUNS)
    assert {run["outcome"] for run in ledger} == {"success"}
    assert any(run["handed_over"] for run in ledger)


def test_a_stop_while_the_bad_rows_are_looked_for_hands_over(replica: Replica, sql: Connection[Any]) -> None:
    agents(sql, 1000)
    raise_for(sql, "agents", "OLD.name = 'a500'")
    stopping = iter([False])
    replica.runner.stopping = lambda: next(stopping, True)
    replica.run(agents_stale, AgentsStale())
    (run,) = rows(sql, RUNS)
    assert (run["outcome"], run["handed_over"]) == ("success", True)


def test_a_batch_that_is_too_slow_is_made_smaller_and_its_size_is_remembered(
    replica: Replica, sql: Connection[Any]
) -> None:
    wraps(sql, 80, "'2026-01-01'")
    sql.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.05); RETURN OLD; END $$"
    )
    sql.execute("CREATE TRIGGER slow BEFORE DELETE ON secret_wraps FOR EACH ROW EXECUTE FUNCTION slow()")
    replica.runner.lease = timedelta(seconds=3)  # and so a statement_timeout of 1 s, which 80 such rows never meet
    replica.runner.budget = timedelta(hours=1)

    assert replica.run(wraps_expired, WrapsExpired()).changed == 80

    (remembered,) = column(sql, "SELECT batch_rows FROM secrets_bridge_worker.sweep_state")
    assert 1 <= remembered < FEWEST_ROWS


def test_a_size_that_is_slow_enough_is_found_in_one_run_after_another(replica: Replica, sql: Connection[Any]) -> None:
    wraps(sql, 6, "'2026-01-01'")
    sql.execute(  # as a statement_timeout does that one such row keeps to, and two do not
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF (SELECT count(*) FROM deleted) > 1 THEN"
        " RAISE query_canceled; END IF; RETURN NULL; END $$"
    )
    sql.execute(
        "CREATE TRIGGER slow AFTER DELETE ON secret_wraps REFERENCING OLD TABLE AS deleted"
        " FOR EACH STATEMENT EXECUTE FUNCTION slow()"
    )
    replica.runner.budget = timedelta(milliseconds=1)  # over before a run can try again
    runs = 0
    while column(sql, "SELECT id FROM secret_wraps") and runs < 20:
        an_hour_passes(replica, sql)
        replica.run(wraps_expired, WrapsExpired())
        runs += 1
    assert not column(sql, "SELECT id FROM secret_wraps")
    assert {run["outcome"] for run in rows(sql, RUNS)} == {"success"}


@pytest.mark.parametrize("analyzed", [True, False], ids=["analyzed", "old statistics"])
def test_no_index_changes_what_a_sweep_reaches(replica: Replica, sql: Connection[Any], analyzed: bool) -> None:
    wraps(sql, 30_000, "now() + interval '10 d' + n * interval '1 s'")
    sql.execute("ALTER TABLE secret_wraps SET (autovacuum_enabled = false)")
    sql.execute("CREATE INDEX later ON secret_wraps (expires_at)")
    sql.execute("VACUUM ANALYZE secret_wraps")
    sql.execute("UPDATE secret_wraps SET expires_at = '2026-01-01' WHERE byte_length = 1 AND random() < 0.5")
    if analyzed:
        sql.execute("ANALYZE secret_wraps")
    expired = column(sql, "SELECT count(*) FROM secret_wraps WHERE expires_at <= now()")[0]
    replica.runner.budget = timedelta(hours=1)

    plans = explained(sql, wraps_expired.strategy(WrapsExpired()))

    assert "later" not in plans
    assert replica.run(wraps_expired, WrapsExpired()).changed == expired


def test_no_partial_index_changes_what_jobs_recovery_reaches(replica: Replica, sql: Connection[Any]) -> None:
    sql.execute(
        "INSERT INTO sync_jobs (job_type, status, correlation_id, agent_scope, payload, claim_expires_at)"
        " SELECT 'sync', 'claimed', gen_random_uuid(), '{}', '{}', now() + interval '1 d'"
        " FROM generate_series(1, 20000)"
    )
    sql.execute("ALTER TABLE sync_jobs SET (autovacuum_enabled = false)")
    sql.execute("CREATE INDEX claims ON sync_jobs (claim_expires_at) WHERE status = 'claimed'")
    sql.execute("VACUUM ANALYZE sync_jobs")
    sql.execute("UPDATE sync_jobs SET claim_expires_at = '2026-01-01' WHERE random() < 0.5")
    dead = column(sql, "SELECT count(*) FROM sync_jobs WHERE claim_expires_at < now()")[0]
    replica.runner.budget = timedelta(hours=1)
    assert "claims" not in explained(sql, jobs_recovery.strategy(JobsRecovery()))
    assert replica.run(jobs_recovery, JobsRecovery()).changed == dead


def explained(sql: Connection[Any], scan: Strategy) -> str:
    """Return the plans that a scan's statements get, with their parameters and without knowing them."""
    scan = scan.strategy if isinstance(scan, Passing) else scan
    assert isinstance(scan, PageScan)
    given = {"start": "(10,1)", "stop": "(20,0)", "limit": 500, "cutoff": PAST, "passing": False}
    plans = []
    for mode in ("auto", "force_generic_plan"):
        sql.execute(f"SET plan_cache_mode = {mode}".encode())
        for query in (scan.sql.whole, scan.sql.listed, scan.sql.gentle, scan.sql.look):
            plans += sql.execute(f"EXPLAIN {query}".encode(), given, prepare=True).fetchall()
    sql.execute("RESET plan_cache_mode")
    return "\n".join(line for (line,) in plans)


def test_rows_that_others_hold_are_counted(database: str, replica: Replica, sql: Connection[Any]) -> None:
    held, _free = insert_wrap(sql, PAST), insert_wrap(sql, PAST)
    with psycopg.connect(database) as other:
        other.execute("SELECT FROM secret_wraps WHERE id = %s FOR UPDATE", [held])
        sweep = replica.run(wraps_expired, WrapsExpired())
    assert (sweep.changed, sweep.counts["skipped_locked"]) == (1, 1)
    assert rows(sql, RUNS)[0]["counts"]["skipped_locked"] == 1


@pytest.mark.parametrize("query", [PAGES.whole, PAGES.listed], ids=["whole", "listed"])
def test_each_row_is_written_once_where_nobody_holds_one(sql: Connection[Any], query: str) -> None:
    """To lock a row is to write it: one that is locked before it is changed is written twice."""
    wraps(sql, 1000, "'2026-01-01'")
    sql.execute("CHECKPOINT")
    given = {"start": "(0,1)", "stop": "(1000,0)", "limit": 1000, "cutoff": datetime.now(UTC)}
    with sql.transaction():
        found = sql.execute(f"EXPLAIN (ANALYZE, WAL, FORMAT JSON) {query}".encode(), given).fetchall()
    assert column(sql, "SELECT count(*) FROM secret_wraps") == [0]
    assert found[0][0][0]["Plan"]["WAL Records"] < 1500


def test_rows_that_others_hold_are_waited_for_only_now_and_then(
    database: str, replica: Replica, sql: Connection[Any]
) -> None:
    agents(sql, 5000)
    waits: list[int] = []

    class Watched(PageScan):
        def recover(self, error: psycopg.Error) -> bool:
            waits.append(self._gentle_steps)
            return super().recover(error)

    watched = replace(agents_stale, strategy=lambda _settings: Watched(FLIP, older_than=timedelta(minutes=5)))
    with psycopg.connect(database) as other:
        held = other.execute("SELECT FROM agents WHERE substr(name, 2)::int % 50 = 0 FOR UPDATE").rowcount
        sweep = replica.run(watched, AgentsStale())
    assert (sweep.changed, sweep.counts["skipped_locked"]) == (5000 - held, held)
    assert waits.count(0) == len(waits)
    assert 1 <= len(waits) <= 1 + rows(sql, RUNS)[0]["batches"] // GENTLE_STEPS


def test_a_table_that_is_locked_fails_the_run_and_is_no_bad_row(
    database: str, replica: Replica, sql: Connection[Any]
) -> None:
    agents(sql, 100)
    replica.runner.lease = timedelta(seconds=3)  # and so a lock_timeout of half a second
    with psycopg.connect(database) as other:
        other.execute("LOCK TABLE agents IN SHARE MODE")  # as CREATE INDEX does
        failed = replica.fails(agents_stale, AgentsStale())
    assert (failed.failure.error, failed.failure.sqlstate) == ("LockNotAvailable", "55P03")
    assert replica.run(agents_stale, AgentsStale()).changed == 100


def test_a_failure_is_written_down_while_somebody_holds_the_whole_table(
    database: str, replica: Replica, sql: Connection[Any]
) -> None:
    replica.runner.lease = timedelta(seconds=3)
    with psycopg.connect(database) as other:
        other.execute("LOCK TABLE agents IN ACCESS EXCLUSIVE MODE")  # as most of ALTER TABLE does
        replica.fails(agents_stale, AgentsStale())
        (run,) = rows(sql, RUNS)
        assert (run["outcome"], run["error_class"]) == ("failure", "LockNotAvailable")
        assert [event.kind for event in replica.events] == [Kind.FAILED]


def test_a_row_that_is_only_referred_to_is_flipped(database: str, replica: Replica, sql: Connection[Any]) -> None:
    """An open transaction of the api that inserts a job for an agent holds FOR KEY SHARE on the agent's row."""
    agent = insert_agent(sql, "a1", last_seen_at=PAST)
    with psycopg.connect(database) as other:
        other.execute("SELECT FROM agents WHERE id = %s FOR KEY SHARE", [agent])
        assert replica.run(agents_stale, AgentsStale()).changed == 1


def test_a_partitioned_table_is_swept(replica: Replica, sql: Connection[Any], owner_database: str) -> None:
    sql.execute("ALTER TABLE secret_wraps RENAME TO plain")
    sql.execute("CREATE TABLE secret_wraps (LIKE plain INCLUDING DEFAULTS) PARTITION BY RANGE (expires_at)")
    for name, bounds in (
        ("p1", "FROM ('2020-01-01') TO ('2025-01-01')"),
        ("p2", "FROM ('2025-01-01') TO ('2030-01-01')"),
    ):
        sql.execute(f"CREATE TABLE {name} PARTITION OF secret_wraps FOR VALUES {bounds}".encode())
    granted(owner_database)
    wraps(sql, 1500, "'2024-06-01'")
    wraps(sql, 1500, "'2026-01-01'")
    wraps(sql, 10, "'2029-01-01'")
    replica.runner.budget = timedelta(hours=1)
    assert replica.run(wraps_expired, WrapsExpired()).changed == 3000
    assert column(sql, "SELECT count(*) FROM secret_wraps") == [10]


def test_the_ledger_is_pruned_by_runs_that_fail_as_well(replica: Replica, sql: Connection[Any]) -> None:
    sql.execute("ALTER TABLE agents RENAME COLUMN status TO state")
    for _ in range(5):
        replica.fails(agents_stale, AgentsStale())
        sql.execute("UPDATE secrets_bridge_worker.sweep_run SET started_at = started_at - interval '30 d'")
    replica.fails(agents_stale, AgentsStale())
    assert len(rows(sql, RUNS)) == 1


@pytest.mark.parametrize("counts", ["[]", "null", '{"deleted": "x"}', '{"deleted": {"n": 1}}', '{"deleted": 1.5}'])
def test_an_open_run_with_counts_that_are_none_is_closed_like_any_other(
    replica: Replica, sql: Connection[Any], counts: str
) -> None:
    sql.execute(
        "INSERT INTO secrets_bridge_worker.sweep_run (name, slot, token, worker, started_at, outcome, changed, counts)"
        " VALUES ('wraps-expired', now() - interval '1 h', 1, 'x', now() - interval '1 h', 'running', 3, %s)",
        [counts],
    )
    replica.run(wraps_expired, WrapsExpired())
    assert column(sql, "SELECT outcome FROM secrets_bridge_worker.sweep_run ORDER BY id") == ["interrupted", "success"]
    assert [event.metadata["deleted"] for event in replica.events] == [3]


@pytest.mark.parametrize("batch_rows", [-(2**31), -1, 0, 2**31 - 1])
def test_a_batch_of_fewer_rows_than_none_is_one_of_some(
    replica: Replica, sql: Connection[Any], batch_rows: int
) -> None:
    wraps(sql, 5, "'2026-01-01'")
    replica.run(wraps_expired, WrapsExpired())
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET batch_rows = %s", [batch_rows])
    replica.next_slot()
    wraps(sql, 5, "'2026-01-01'")
    assert replica.run(wraps_expired, WrapsExpired()).changed == 5
