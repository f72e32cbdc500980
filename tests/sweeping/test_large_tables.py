"""Tables that are large: what a run reads of them, by which plans, and in how many round trips."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import pytest

from actors import SWEEPERS
from actors.agents_stale import AgentsStale, agents_stale
from actors.jobs_recovery import JobsRecovery, jobs_recovery
from actors.secrets_stale import SecretsStale, secrets_stale
from actors.wraps_expired import WrapsExpired, wraps_expired
from app.sweeping.ledger import transactions
from app.sweeping.lock import Tick
from app.sweeping.runner import RunFailed
from app.sweeping.scans import page_scan
from app.sweeping.scans.indexed_scan import IndexedScan
from app.sweeping.scans.keyset_scan import BY_THE_INDEX, KeysetScan
from app.sweeping.scans.page_scan import PageScan
from app.sweeping.scans.tables import LARGE
from app.sweeping.strategy import Passing, Strategy
from app.sweeping.sweeper import Sweeper, SweeperSettings
from tests.support.rights.grants import granted
from tests.support.rows import column, insert_wrap

if TYPE_CHECKING:
    from psycopg import Connection

    from tests.support.replica import Replica

INDEXES = Path("deploy/recommended_indexes.sql")
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
ROWS = 40_000

WRAPS = """
INSERT INTO secret_wraps (encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash, byte_length,
                          expires_at, consumed_at, consumed_by_user)
SELECT decode(repeat(md5(n::text), 32), 'hex'), '\\x02', '\\x03', 'local:test', '\\x04', 1, now() + interval '7 d',
       CASE WHEN n % 3 = 0 THEN now() END, CASE WHEN n % 3 = 0 THEN 'someone' END
  FROM generate_series(1, {rows}) AS n
"""
SECRETS = """
INSERT INTO secrets (cluster_name, provider_type, secret_ref, status, last_seen_at)
SELECT 'prod', 'vault', repeat('x', 400) || n, CASE WHEN n % 2 = 0 THEN 'present' ELSE 'missing' END,
       now() - CASE WHEN n % 2 = 0 THEN interval '1 h' ELSE interval '90 d' END
  FROM generate_series(1, {rows}) AS n
"""
JOBS = """
INSERT INTO sync_jobs (job_type, status, correlation_id, agent_scope, payload, claim_expires_at)
SELECT 'sync', CASE WHEN n % 2 = 0 THEN 'claimed' ELSE 'succeeded' END, gen_random_uuid(), '{{}}',
       jsonb_build_object('text', repeat('x', 400)), now() + interval '1 d'
  FROM generate_series(1, {rows}) AS n
"""


class Case(NamedTuple):
    """A sweep of a table that may be large, and how its rows are made, and made due."""

    sweeper: Sweeper[Any]
    settings: SweeperSettings
    fill: str
    age: str

    @property
    def table(self) -> str:
        """The table."""
        return self.sweeper.table


LARGE_ONES = pytest.mark.parametrize(
    "case",
    [
        Case(
            wraps_expired,
            WrapsExpired(),
            WRAPS,
            "UPDATE secret_wraps SET expires_at = '2026-01-01'::timestamptz + random() * interval '1 h'",
        ),
        Case(
            secrets_stale,
            SecretsStale(),
            SECRETS,
            "UPDATE secrets SET last_seen_at = '2026-01-01'::timestamptz + random() * interval '1 h'",
        ),
        Case(
            jobs_recovery,
            JobsRecovery(),
            JOBS,
            "UPDATE sync_jobs SET claim_expires_at = '2026-01-01'::timestamptz + random() * interval '1 h'",
        ),
    ],
    ids=lambda case: case.sweeper.name,
)


def fill(sql: Connection[Any], query: str, rows: int = ROWS) -> None:
    """Insert as many rows as make a table large, and nothing that is due."""
    sql.execute(query.format(rows=rows).encode())


def make_indexes(sql: Connection[Any]) -> None:
    """Make those that are recommended, as an operator would."""
    for line in INDEXES.read_text().splitlines():
        if line.startswith("CREATE"):
            sql.execute(line.encode())


def blocks(sql: Connection[Any], table: str) -> int:
    """Return how many blocks of a table all sessions have read so far, those in memory included."""
    sql.execute("SELECT pg_stat_force_next_flush()")
    return int(
        column(sql, f"SELECT heap_blks_read + heap_blks_hit FROM pg_statio_user_tables WHERE relname = '{table}'")[0]
    )


def flushed(replica: Replica) -> None:
    """Have the session of a replica report its numbers."""
    with replica.runner.pool.connection() as connection:
        connection.execute("SELECT pg_stat_force_next_flush()")


def limit(sql: Connection[Any]) -> None:
    """Set what every transaction of a sweep begins with."""
    sql.execute(transactions.LIMIT, {**transactions.Limits.below(timedelta(minutes=1))._asdict(), "durable": True})


def way(sweeper: Sweeper[Any], used: list[Strategy]) -> Sweeper[Any]:
    """Return the sweeper, whose strategies are kept."""

    def strategy(settings: SweeperSettings) -> Strategy:
        used.append(sweeper.strategy(settings))
        return used[-1]

    return replace(sweeper, strategy=strategy)


def chosen(used: list[Strategy]) -> Strategy:
    """Return the way that the last run has gone."""
    strategy = used[-1]
    return strategy.strategy if isinstance(strategy, Passing) else strategy


def test_the_recommended_indexes_are_those_that_the_sweepers_name() -> None:
    named = [sweeper.index.statement for sweeper in SWEEPERS if sweeper.index]
    written = [line for line in INDEXES.read_text().splitlines() if line.startswith("CREATE")]
    assert sorted(named) == sorted(written)


@LARGE_ONES
def test_a_large_table_with_an_index_is_swept_by_it(replica: Replica, sql: Connection[Any], case: Case) -> None:
    sql.execute(case.fill.format(rows=ROWS).encode())
    sql.execute(b"ANALYZE")  # before the rows that are due: the planner expects none, or all
    sql.execute(f"{case.age} WHERE ctid IN (SELECT ctid FROM {case.table} LIMIT 3000)".encode())
    due = 3000 if case.sweeper.name == "wraps-expired" else 1500
    make_indexes(sql)
    used: list[Strategy] = []
    assert replica.run(way(case.sweeper, used), case.settings).changed == due
    assert isinstance(chosen(used), KeysetScan)


@LARGE_ONES
def test_a_large_table_without_an_index_is_read_once_without_a_lock(
    replica: Replica, sql: Connection[Any], case: Case
) -> None:
    sql.execute(case.fill.format(rows=ROWS).encode())
    sql.execute("VACUUM")
    pages = column(sql, f"SELECT pg_relation_size('{case.table}') / 8192")[0]
    assert pages >= LARGE
    used: list[Strategy] = []
    before = blocks(sql, case.table)
    assert replica.run(way(case.sweeper, used), case.settings).changed == 0
    flushed(replica)
    assert isinstance(chosen(used), PageScan)
    assert pages * 0.9 <= blocks(sql, case.table) - before <= pages * 1.1
    assert column(sql, "SELECT batches FROM secrets_bridge_worker.sweep_run") == [2]


def test_a_table_too_large_for_one_run_is_gone_through_in_shares(replica: Replica, sql: Connection[Any]) -> None:
    fill(sql, WRAPS)
    sql.execute("UPDATE secret_wraps SET expires_at = '2026-01-01', consumed_at = now(), consumed_by_user = 'x'"
                " WHERE ctid IN (SELECT ctid FROM secret_wraps ORDER BY ctid DESC LIMIT 10)")  # fmt: skip
    pages = column(sql, "SELECT pg_relation_size('secret_wraps') / 8192")[0]
    replica.runner.most_pages = pages // 4 + 1
    living = insert_wrap(sql, LONG_AGO)  # one that could still be opened, at the very end
    runs = 0
    while column(sql, "SELECT count(*) FROM secret_wraps WHERE expires_at < now()") != [0]:
        assert runs < 6
        replica.run(wraps_expired, WrapsExpired())
        runs += 1
        assert column(sql, f"SELECT count(*) FROM secret_wraps WHERE id = '{living}'") == [0]
        sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = 'epoch'")
        sql.execute("UPDATE secrets_bridge_worker.sweep_run SET slot = slot - interval '1 h'")
    assert runs == 4
    handed_over = column(sql, "SELECT handed_over FROM secrets_bridge_worker.sweep_run ORDER BY id")
    assert handed_over[:3] == [True] * 3


def test_a_look_that_is_too_slow_reads_less(
    replica: Replica, sql: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(sql, WRAPS)
    replica.runner.lease = timedelta(seconds=1)
    asked: list[int] = []
    look = PageScan._look

    def watched(self: PageScan, read: Any) -> bool:
        asked.append(self._look_pages)

        def slow(query: str, **words: Any) -> dict[str, Any]:
            if len(asked) < 3:
                return dict(read("SELECT pg_sleep(60), %(start)s AS first", start=words["start"]))
            return dict(read(query, **words))

        return look(self, slow)

    monkeypatch.setattr(PageScan, "_look", watched)
    assert replica.run(wraps_expired, WrapsExpired()).changed == 0
    assert asked[:3] == [page_scan.FIRST_LOOK, page_scan.FIRST_LOOK // 4, page_scan.FIRST_LOOK // 16]


def keyset_sweepers() -> list[Any]:
    """Return all sweepers that go by an index of the api's, or may go by one of their own."""
    cases = []
    for sweeper in SWEEPERS:
        if sweeper.name == "gitops-poller":
            continue  # it has no statements of this kind, and needs a key
        strategy = sweeper.strategy(sweeper.settings())
        if isinstance(strategy, IndexedScan):
            cases.append(pytest.param(sweeper, strategy._keys, id=sweeper.name))
        elif isinstance(strategy, KeysetScan):
            cases.append(pytest.param(sweeper, strategy, id=sweeper.name))
    return cases


@pytest.mark.parametrize(("sweeper", "scan"), keyset_sweepers())
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
def test_a_scan_of_an_index_reads_that_whatever_the_statistics_say(
    sql: Connection[Any], sweeper: Sweeper[Any], scan: KeysetScan, mode: str
) -> None:
    """A table that is empty, to the planner, is read as a whole: an index seems a waste."""
    make_indexes(sql)
    sql.execute(f"SET plan_cache_mode = {mode}".encode())
    words = {"after": "-infinity", "skip": 0, "cutoff": LONG_AGO, "limit": 500, "passing": False, "kept": []}
    for query in filter(None, (scan._listed, scan._gentle)):
        with sql.transaction():
            limit(sql)
            sql.execute(BY_THE_INDEX)
            plan = "\n".join(line for (line,) in sql.execute(f"EXPLAIN {query}".encode(), words, prepare=True))
        due = plan[plan.index("CTE due") : plan.index("CTE", plan.index("CTE due") + 7)]
        assert "Index Scan using" in due, plan
        assert "Index Cond" in due, plan
        assert "Seq Scan" not in plan, plan


@pytest.mark.parametrize("query", ["whole", "listed", "look"])
@LARGE_ONES
def test_a_range_of_pages_is_read_as_such(sql: Connection[Any], case: Case, query: str) -> None:
    sql.execute(case.fill.format(rows=200_000).encode())
    make_indexes(sql)
    sql.execute("ANALYZE")
    strategy = case.sweeper.strategy(case.settings)
    assert isinstance(strategy, IndexedScan)
    pages = column(sql, f"SELECT pg_relation_size('{case.table}') / 8192")[0]
    text = getattr(strategy._pages.sql, query)
    for mode in ("force_custom_plan", "force_generic_plan"):
        sql.execute(f"SET plan_cache_mode = {mode}".encode())
        for start, stop in ((10, 20), (0, pages)):  # as a plan, the whole table is tempting
            words = {"start": f"({start},1)", "stop": f"({stop},0)", "cutoff": LONG_AGO, "limit": 500}
            with sql.transaction():
                limit(sql)
                plan = "\n".join(line for (line,) in sql.execute(f"EXPLAIN {text}".encode(), words, prepare=True))
            assert "Tid Range Scan" in plan, plan
            for other in ("Index", "Seq Scan", "Gather"):
                assert other not in plan, plan


def test_rows_that_share_one_key_are_swept_by_their_pages(replica: Replica, sql: Connection[Any]) -> None:
    """To sort them, or to pass those of before in each step, would take longer with each that has the key."""
    fill(sql, WRAPS)
    make_indexes(sql)
    sql.execute("UPDATE secret_wraps SET expires_at = '2026-01-01'")
    used: list[Strategy] = []
    assert replica.run(way(wraps_expired, used), WrapsExpired()).changed == ROWS
    assert isinstance(chosen(used), PageScan)


def test_what_comes_first_is_an_addition(replica: Replica, sql: Connection[Any]) -> None:
    """Living wraps that cannot be deleted keep no run from the pages, nor from its place in them."""
    fill(sql, WRAPS)
    sql.execute("UPDATE secret_wraps SET expires_at = '2026-01-01' WHERE consumed_at IS NULL AND random() < 0.01")
    sql.execute("UPDATE secret_wraps SET expires_at = '2026-01-01' WHERE consumed_at IS NOT NULL")
    sql.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF OLD.consumed_at IS NULL THEN RAISE 'no'; END IF; RETURN OLD; END $$"
    )
    sql.execute("CREATE TRIGGER refuse BEFORE DELETE ON secret_wraps FOR EACH ROW EXECUTE FUNCTION refuse()")
    replica.runner.most_pages = LARGE - 1
    left = "SELECT count(*) FROM secret_wraps WHERE expires_at < now() AND consumed_at IS NOT NULL"
    places = []
    for _ in range(8):
        replica.run(wraps_expired, WrapsExpired())
        places += column(sql, "SELECT position FROM secrets_bridge_worker.sweep_state")
        replica.next_slot()
    assert column(sql, left) == [0]
    assert max(places) < 100_000  # pages, not a time


def test_a_locked_table_is_waited_for_no_longer_than_a_lock(
    database: str, replica: Replica, sql: Connection[Any]
) -> None:
    """Even to ask how large a table is waits for who has locked it."""
    replica.runner.lease = timedelta(seconds=6)
    with psycopg.connect(database) as other:
        other.execute("LOCK TABLE secret_wraps IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(RunFailed) as failed:
            replica.runner.run(wraps_expired, WrapsExpired(), held(replica))
    assert "55P03" in str(failed.value)
    assert column(sql, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") == [0]


def held(replica: Replica) -> Tick:
    """Take the lock of wraps-expired."""
    tick = replica.acquire(wraps_expired, WrapsExpired())
    assert isinstance(tick, Tick)
    return tick


@pytest.mark.parametrize("partitions", [1, 8])
def test_a_partitioned_table_is_swept_whole(
    replica: Replica, sql: Connection[Any], owner_database: str, partitions: int
) -> None:
    sql.execute("ALTER TABLE agents RENAME TO plain")
    sql.execute("CREATE TABLE agents (LIKE plain INCLUDING DEFAULTS) PARTITION BY HASH (id)")
    for number in range(partitions):
        sql.execute(
            f"CREATE TABLE agents_{number} PARTITION OF agents"
            f" FOR VALUES WITH (MODULUS {partitions}, REMAINDER {number})".encode()
        )
    granted(owner_database)
    sql.execute(
        "INSERT INTO agents (name, secret_hash, status, last_seen_at, scope)"
        " SELECT 'a' || n, '\\x01', 'active', '2026-01-01', '{}' FROM generate_series(1, 30000) AS n"
    )
    assert replica.run(agents_stale, AgentsStale()).changed == 30_000
    assert column(sql, "SELECT count(*) FROM agents WHERE status = 'stale'") == [30_000]


def test_bad_rows_of_a_pass_in_shares_are_told_once_and_again_when_they_are_new(
    replica: Replica, sql: Connection[Any]
) -> None:
    fill(sql, WRAPS)
    sql.execute(
        "UPDATE secret_wraps SET expires_at = '2026-01-01', consumed_at = now(), consumed_by_user = 'bad'"
        " WHERE ctid = (SELECT max(ctid) FROM secret_wraps)"
    )
    sql.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF OLD.consumed_by_user = 'bad' THEN RAISE 'no' USING ERRCODE = '23503'; END IF; RETURN OLD; END $$"
    )
    sql.execute("CREATE TRIGGER refuse BEFORE DELETE ON secret_wraps FOR EACH ROW EXECUTE FUNCTION refuse()")
    replica.runner.most_pages = column(sql, "SELECT pg_relation_size('secret_wraps') / 8192")[0] // 3 + 1

    def told() -> int:
        """Do two passes, and return how often bad rows have been told so far."""
        for _ in range(6):
            replica.run(wraps_expired, WrapsExpired())
            replica.next_slot()
        return sum("stepped around" in event.title for event in replica.events)

    assert told() == 1
    sql.execute("UPDATE secret_wraps SET expires_at = now() + interval '1 d' WHERE consumed_by_user = 'bad'")
    assert told() == 1
    sql.execute("UPDATE secret_wraps SET expires_at = '2026-01-01' WHERE consumed_by_user = 'bad'")
    assert told() == 2
