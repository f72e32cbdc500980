"""A run: fence, batches, budget, ledger, events, and what is left of it when it goes wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import redis as redis_py
from psycopg import Connection
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool
from structlog.testing import capture_logs

from actors.agents_stale import AgentsStale, agents_stale
from actors.wraps_expired import WrapsExpired, wraps_expired
from app.core.errors import Failure, LeaseLost, NotDue, Reason
from app.core.events import Severity
from app.demo.servers import Postgres
from app.sweeping import clocks, ledger
from app.sweeping.lock import Tick
from app.sweeping.runner import RunFailed
from app.sweeping.scans.batch_size import BatchSizer
from app.sweeping.scans.page_scan import PageScan
from app.sweeping.schedule import microseconds, slot_at
from app.sweeping.strategy import Passing, Run, Step, Strategy
from app.sweeping.streak import Telling
from app.sweeping.sweeper import Sweep, Sweeper
from bench.chaos import LEDGER
from tests.support.replica import Replica
from tests.support.rows import column, insert_agent, insert_wrap, rows
from tests.support.waiting import HUNG, eventually

RUNS = "SELECT * FROM secrets_bridge_worker.sweep_run ORDER BY id"
STATE = "SELECT * FROM secrets_bridge_worker.sweep_state"
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
PAST = datetime(2026, 1, 1, tzinfo=UTC)


def expired(sql: Connection[Any], count: int, *, consumed: bool = False) -> None:
    sql.execute(
        "INSERT INTO secret_wraps (encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash, byte_length,"
        " expires_at, consumed_at, consumed_by_user) SELECT '\\x01', '\\x02', '\\x03', 'k', '\\x04', 1, '2026-01-01',"
        " CASE WHEN %(consumed)s THEN now() END, CASE WHEN %(consumed)s THEN 'u' END"
        " FROM generate_series(1, %(count)s)",
        {"count": count, "consumed": consumed},
    )


def now_slot(sql: Connection[Any], interval: timedelta = MINUTE) -> int:
    row = sql.execute("SELECT now()").fetchone()
    assert row is not None
    return slot_at(microseconds(row[0]), interval)


def await_next_second(sql: Connection[Any]) -> None:
    """Wait until the slot of a second is newer than the newest that was claimed."""
    (claimed,) = column(sql, "SELECT last_slot FROM secrets_bridge_worker.sweep_state")
    eventually(lambda: now_slot(sql, SECOND) > microseconds(claimed))


class Observed(PageScan):
    """A page scan with something that happens before each of its steps."""

    def __init__(self, inner: PageScan, before: Callable[[Run, BatchSizer], object]) -> None:
        super().__init__(inner.sql, inner.older_than)
        self._before = before

    def ask(self, run: Run) -> None:
        """Nothing yet: what comes before a step comes before its statement."""

    def step(self, run: Run, *, over: bool) -> Step:
        self._before(run, self.sizer)
        super().ask(run)
        return super().step(run, over=over)


def wrapped(sweeper: Sweeper[Any], before: Callable[[Run, BatchSizer], object]) -> Sweeper[Any]:
    """Return the sweeper with something that happens before each of its steps."""

    def strategy(settings: Any) -> PageScan:
        inner = sweeper.strategy(settings)
        inner = inner.strategy if isinstance(inner, Passing) else inner
        assert isinstance(inner, PageScan)
        return Observed(inner, before)

    return replace(sweeper, strategy=strategy)


def test_a_run_leaves_one_row_in_the_ledger_and_one_event(replica: Replica, sql: Connection[Any]) -> None:
    expired(sql, 1200)
    slot = now_slot(sql)

    sweep = replica.run(wraps_expired, WrapsExpired(), slot)

    (run,) = rows(sql, RUNS)
    assert sweep.changed == 1200
    assert (run["outcome"], run["changed"], run["token"], run["covered"]) == ("success", 1200, 1, 0)
    assert run["batches"] >= 2
    assert not run["handed_over"]
    (event,) = replica.events
    assert (event.severity, event.title, dict(event.metadata)) == (
        Severity.INFO,
        "expired wraps purged",
        {"deleted": 1200},
    )


def test_an_idle_run_is_one_transaction_and_no_event(replica: Replica, sql: Connection[Any]) -> None:
    replica.run(wraps_expired, WrapsExpired())
    (run,) = rows(sql, RUNS)
    assert (run["outcome"], run["batches"]) == ("success", 1)
    assert replica.events == []


def test_a_slot_is_claimed_once_even_when_redis_forgot_it(
    replica: Replica, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    slot = now_slot(sql)
    replica.run(wraps_expired, WrapsExpired(), slot)
    redis.flushall()
    with pytest.raises(NotDue) as refused:
        replica.run(wraps_expired, WrapsExpired(), slot)
    assert refused.value.reason is Reason.SUPERSEDED
    assert len(rows(sql, RUNS)) == 1


def test_the_ledger_itself_refuses_a_second_run_of_a_slot(replica: Replica, sql: Connection[Any]) -> None:
    replica.run(wraps_expired, WrapsExpired())
    with pytest.raises(psycopg.errors.UniqueViolation):
        sql.execute(
            "INSERT INTO secrets_bridge_worker.sweep_run (name, slot, worker, started_at, outcome)"
            " SELECT name, slot, 'another', now(), 'running' FROM secrets_bridge_worker.sweep_run"
        )


def test_a_late_tick_runs_the_newest_due_slot_and_covers_the_missed_ones(
    replica: Replica, sql: Connection[Any]
) -> None:
    second = WrapsExpired(interval=timedelta(seconds=1))
    replica.run(wraps_expired, second, now_slot(sql, second.interval))
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = last_slot - interval '10 s'")
    sql.execute("UPDATE secrets_bridge_worker.sweep_run SET slot = slot - interval '10 s'")
    late = now_slot(sql, second.interval) - 8_000_000

    tick = replica.locks.acquire("wraps-expired", slot=None, sent=None, interval=MINUTE)
    assert isinstance(tick, Tick)
    replica.runner.run(wraps_expired, second, replace(tick, slot=late))

    run = rows(sql, RUNS)[-1]
    assert run["slot"] > PAST
    assert microseconds(run["slot"]) > late
    assert run["covered"] >= 8


def test_a_tick_far_ahead_of_the_databases_clock_means_the_newest_slot(replica: Replica, sql: Connection[Any]) -> None:
    """Redis's clock is ahead of PostgreSQL's, so that its tick is."""
    tick = replica.acquire(wraps_expired, WrapsExpired())
    assert isinstance(tick, Tick)
    before = now_slot(sql)
    with capture_logs() as records:
        clocks._reported.clear()
        state = replica.runner.run(wraps_expired, WrapsExpired(), replace(tick, slot=before + 600 * 60_000_000))
    assert before <= state.claimed.slot <= now_slot(sql)
    assert [record["clock"] for record in records if record["event"] == "a clock is, or was, ahead"] == ["redis"]


def test_a_database_clock_that_was_ahead_mutes_nothing(replica: Replica, sql: Connection[Any]) -> None:
    replica.run(wraps_expired, WrapsExpired())
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = last_slot + interval '30 d'")
    sql.execute("UPDATE secrets_bridge_worker.sweep_run SET slot = slot + interval '30 d'")
    expired(sql, 5)
    with capture_logs() as records:
        clocks._reported.clear()
        assert replica.run(wraps_expired, WrapsExpired(interval=SECOND), now_slot(sql, SECOND)).changed == 5
    (record,) = [record for record in records if record["event"] == "a clock is, or was, ahead"]
    assert (record["log_level"], record["clock"]) == ("error", "postgres")
    assert timedelta(days=29) < record["ahead"] < timedelta(days=31)


def test_what_a_clock_ahead_has_run_is_run_again_when_its_time_has_come(replica: Replica, sql: Connection[Any]) -> None:
    """A clock was far ahead for long: it has run the slot of this moment, and all behind it."""
    hourly = WrapsExpired(interval=timedelta(hours=1))
    replica.run(wraps_expired, hourly)
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = last_slot + interval '60 h'")
    slot = now_slot(sql, hourly.interval)
    sql.execute(
        "INSERT INTO secrets_bridge_worker.sweep_run (name, slot, worker, started_at, outcome) SELECT 'wraps-expired',"
        " to_timestamp(%s / 1e6) + n * interval '1 h', 'x', now(), 'success' FROM generate_series(1, 60) AS n",
        [slot],
    )
    replica.locks._release.registered_client.flushall()
    with pytest.raises(NotDue):  # this very slot was run
        replica.run(wraps_expired, hourly)

    for _ in range(3):  # the next ones are not: time goes on
        sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = last_slot - interval '1 h'")
        sql.execute(
            "UPDATE secrets_bridge_worker.sweep_run SET slot = slot - id * interval '1 h' WHERE outcome = 'success'"
            " AND slot = (SELECT max(slot) FROM secrets_bridge_worker.sweep_run WHERE outcome = 'success')"
        )
        replica.locks._release.registered_client.flushall()
        replica.run(wraps_expired, hourly)
    outcomes = column(sql, "SELECT outcome FROM secrets_bridge_worker.sweep_run ORDER BY id")
    assert (outcomes.count("success"), outcomes.count("interrupted")) == (4, 60)


def test_a_tick_a_little_ahead_is_run(replica: Replica, sql: Connection[Any]) -> None:
    row = sql.execute("SELECT now()").fetchone()
    assert row is not None
    now = microseconds(row[0])
    # An interval of about ten minutes, three quarters of whose current slot are over.
    interval = timedelta(microseconds=4 * now // (4 * (now // 600_000_000) + 3))
    slot = slot_at(now, interval) + interval // timedelta(microseconds=1)
    replica.run(wraps_expired, WrapsExpired(interval=interval), slot)
    assert microseconds(rows(sql, RUNS)[0]["slot"]) == slot


def test_changing_the_interval_does_not_stop_the_slots(replica: Replica, sql: Connection[Any]) -> None:
    replica.run(wraps_expired, WrapsExpired(interval=MINUTE))
    await_next_second(sql)
    replica.run(wraps_expired, WrapsExpired(interval=SECOND))
    assert len(rows(sql, RUNS)) == 2


def test_a_missing_table_rests_the_sweeper_and_nothing_is_claimed(replica: Replica, sql: Connection[Any]) -> None:
    sql.execute("ALTER TABLE secret_wraps RENAME TO elsewhere")
    with pytest.raises(NotDue) as refused:
        replica.run(wraps_expired, WrapsExpired())
    assert refused.value.reason is Reason.TABLE_MISSING
    assert rows(sql, STATE) == []
    sql.execute("ALTER TABLE elsewhere RENAME TO secret_wraps")
    replica.run(wraps_expired, WrapsExpired())
    assert rows(sql, RUNS)[0]["outcome"] == "success"


def test_a_deleted_lock_stops_the_sweep_which_then_changes_nothing(
    database: str, redis: redis_py.Redis, sql: Connection[Any]
) -> None:
    expired(sql, 5000)
    with ConnectionPool[Connection[Any]](database, kwargs={"autocommit": True}, min_size=0, max_size=2) as pool:
        replica = Replica(pool, redis, lease=timedelta(seconds=6))
        batches = []

        def slow(run: Run, sizer: BatchSizer) -> None:
            batches.append(run)
            sizer.rows = 50
            if len(batches) == 2:
                redis.delete("secrets-bridge:lock:worker:sweeper:wraps-expired")
            if len(batches) >= 2:
                run.cursor.execute("SELECT pg_sleep(0.2)")

        slot = now_slot(sql)
        with pytest.raises(LeaseLost):
            replica.run(wrapped(wraps_expired, slow), WrapsExpired(), slot)
        left = column(sql, "SELECT count(*) FROM secret_wraps")
        assert 0 < 5000 - left[0] < 5000
        (run,) = rows(sql, RUNS)
        assert run["outcome"] == "running"
        assert run["changed"] == 5000 - left[0]

        # The next slot runs, reports what the lost one had done, and finishes the work.
        await_next_second(sql)
        replica.run(wraps_expired, WrapsExpired(interval=SECOND))
        events = replica.events
    first, second = rows(sql, RUNS)
    assert (first["outcome"], second["outcome"]) == ("interrupted", "success")
    assert first["changed"] + second["changed"] == 5000
    assert [dict(event.metadata) for event in events] == [
        {"deleted": first["changed"], "interrupted": 1},
        {"deleted": second["changed"]},
    ]


def test_a_statement_that_runs_when_the_lock_is_lost_is_cut(
    database: str, redis: redis_py.Redis, sql: Connection[Any]
) -> None:
    with ConnectionPool[Connection[Any]](database, kwargs={"autocommit": True}, min_size=0, max_size=2) as pool:
        replica = Replica(pool, redis, lease=timedelta(seconds=6))
        started, slept = threading.Event(), threading.Event()

        def long(run: Run, _sizer: BatchSizer) -> None:
            started.set()
            run.cursor.execute("SET LOCAL statement_timeout = 0")
            run.cursor.execute("SELECT pg_sleep(%s)", [HUNG])
            slept.set()

        def delete_key() -> None:
            started.wait()
            redis.delete("secrets-bridge:lock:worker:sweeper:wraps-expired")

        threading.Thread(target=delete_key, daemon=True).start()
        with pytest.raises(LeaseLost):
            replica.run(wrapped(wraps_expired, long), WrapsExpired())
        assert not slept.is_set()
    assert rows(sql, STATE) == []


def test_a_paused_run_is_fenced_off_by_its_successor(
    replica: Replica, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    expired(sql, 3000)
    batches = []

    def overtaken(run: Run, sizer: BatchSizer) -> None:
        batches.append(run)
        sizer.rows = 100
        if len(batches) == 1:
            return
        raise AssertionError("the fence let a batch through")

    def overtake(_seconds: float) -> None:
        replica.runner.on_batch = lambda _seconds: None
        redis.flushall()
        await_next_second(sql)
        replica.run(wraps_expired, WrapsExpired(interval=SECOND))

    replica.runner.on_batch = overtake
    with pytest.raises(LeaseLost):
        replica.run(wrapped(wraps_expired, overtaken), WrapsExpired())
    first, second = rows(sql, RUNS)
    assert (first["outcome"], second["outcome"]) == ("interrupted", "success")
    assert 0 < first["changed"] < 3000
    assert second["changed"] == 3000 - first["changed"]


def claimed(connection: Connection[Any]) -> ledger.Claimed:
    """Claim the current slot of agents-stale, and open its run."""
    name, limits = "agents-stale", ledger.Limits.below(MINUTE)
    with connection.transaction():
        now = ledger.begun(ledger.begin(connection, "agents", "agents", limits)).now
        claim = ledger.claimed(ledger.claim(connection, name, None, SECOND), name, now, None, SECOND)
        assert claim is not None
        opening = ledger.open_run(connection, name, claim, worker="x", cutoff=now)
        return ledger.opened(opening, name, claim, began=now, cutoff=now)


def test_a_run_that_fails_once_its_successor_has_begun_counts_as_run_and_as_failed(sql: Connection[Any]) -> None:
    """Its successor has not covered the slot, so it must not be given back."""
    first = claimed(sql)
    await_next_second(sql)
    second = claimed(sql)
    counted, reported = ledger.fail(sql.cursor(row_factory=dict_row), first, Failure("Boom"), Telling())
    assert counted is not None
    assert (counted.streak.failures, counted.tell, reported) == (1, True, True)
    assert [(run["outcome"], run["error_class"]) for run in rows(sql, RUNS)] == [
        ("interrupted", "Boom"),
        ("running", None),
    ]
    (state,) = rows(sql, STATE)
    assert microseconds(state["last_slot"]) == second.slot
    (sums,) = rows(sql, LEDGER)
    assert sums["span"] == sums["slots"] + sums["covered"]
    assert sums["committed"] == sums["committed_slots"]


def test_a_failed_run_gives_its_slot_back_and_shows_no_row_content(replica: Replica, sql: Connection[Any]) -> None:
    insert_agent(sql, "canary-agent", last_seen_at=PAST)
    sql.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE insufficient_privilege USING MESSAGE = 'no: ' || NEW.name; END $$"
    )
    sql.execute("CREATE TRIGGER refuse BEFORE UPDATE ON agents FOR EACH ROW EXECUTE FUNCTION refuse()")
    slot = now_slot(sql)

    error = replica.fails(agents_stale, AgentsStale(), slot)

    assert str(error) == "InsufficientPrivilege 42501"
    assert error.__cause__ is None
    assert error.__suppress_context__
    (run,) = rows(sql, RUNS)
    assert (run["outcome"], run["error_class"], run["sqlstate"]) == ("failure", "InsufficientPrivilege", "42501")
    sql.execute("DROP TRIGGER refuse ON agents")
    assert replica.run(agents_stale, AgentsStale(), slot).changed == 1
    assert "canary" not in json.dumps([repr(replica.events), repr(rows(sql, RUNS)), str(error)])


def test_a_run_whose_last_commit_got_through_keeps_its_slot(replica: Replica, sql: Connection[Any]) -> None:
    class Unheard(Exception):
        """The commit was done; its answer was lost."""

    def unheard(_seconds: float) -> None:
        raise Unheard

    expired(sql, 10)
    slot = now_slot(sql)
    replica.runner.on_batch = unheard
    replica.fails(wraps_expired, WrapsExpired(), slot)
    assert sorted(run["outcome"] for run in rows(sql, RUNS)) == ["failure", "success"]
    replica.runner.on_batch = lambda _seconds: None
    with pytest.raises(NotDue):
        replica.run(wraps_expired, WrapsExpired(), slot)


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


@pytest.mark.parametrize("consumed", [True, False])
def test_a_run_out_of_time_hands_over_and_the_next_goes_on_from_there(
    replica: Replica, sql: Connection[Any], consumed: bool
) -> None:
    expired(sql, 4000, consumed=consumed)
    replica.runner.budget = timedelta(milliseconds=1)
    settings = WrapsExpired(interval=SECOND)
    changed = replica.run(wraps_expired, settings).changed
    assert 0 < changed < 4000
    (run,) = rows(sql, RUNS)
    assert (run["outcome"], run["handed_over"]) == ("success", True)
    position = rows(sql, STATE)[0]["position"]
    assert position > 0

    replica.runner.budget = timedelta(hours=1)
    visited: list[Run] = []
    await_next_second(sql)
    rest = replica.run(wrapped(wraps_expired, lambda run, _sizer: visited.append(run)), settings).changed
    assert rest == 4000 - changed
    assert visited[0].position == position
    assert rows(sql, STATE)[0]["position"] == 0


def test_a_process_that_is_told_to_stop_ends_its_run_between_batches(replica: Replica, sql: Connection[Any]) -> None:
    expired(sql, 4000)
    replica.runner.stopping = lambda: True
    assert 0 < replica.run(wraps_expired, WrapsExpired()).changed < 4000
    assert rows(sql, RUNS)[0]["handed_over"]


def test_rows_that_somebody_holds_are_left_for_later(database: str, replica: Replica, sql: Connection[Any]) -> None:
    held, free = insert_wrap(sql, PAST), insert_wrap(sql, PAST)
    with psycopg.connect(database) as other:
        other.execute("SELECT FROM secret_wraps WHERE id = %s FOR UPDATE", [held])
        assert replica.run(wraps_expired, WrapsExpired()).changed == 1  # a wait would end in an error: lock_timeout
    assert column(sql, "SELECT id::text FROM secret_wraps") == [held]
    assert free != held


def test_rows_that_move_to_new_pages_during_the_walk_are_found(replica: Replica, sql: Connection[Any]) -> None:
    expired(sql, 2000)
    moved: list[int] = []

    def move(_run: Run, _sizer: BatchSizer) -> None:
        if not moved:
            moved.append(1)
            sql.execute("UPDATE secret_wraps SET byte_length = 2")

    replica.run(wrapped(wraps_expired, move), WrapsExpired())
    assert column(sql, "SELECT count(*) FROM secret_wraps") == [0]


def test_old_rows_of_the_ledger_are_pruned(replica: Replica, sql: Connection[Any]) -> None:
    sql.execute(
        "INSERT INTO secrets_bridge_worker.sweep_run (name, slot, worker, started_at, outcome) SELECT 'wraps-expired',"
        " now() - n * interval '1 day', 'w', now() - n * interval '1 day', 'success' FROM generate_series(1, 20) AS n"
    )
    replica.run(wraps_expired, WrapsExpired())
    assert column(sql, "SELECT count(*) FROM secrets_bridge_worker.sweep_run") == [7]


def test_a_database_that_is_away_fails_the_run_and_not_the_process(postgres: Postgres, redis: redis_py.Redis) -> None:
    nowhere = f"postgres://postgres@127.0.0.1:{postgres.port}/nowhere"
    with ConnectionPool[Connection[Any]](nowhere, min_size=0, max_size=1, timeout=1) as pool:
        replica = Replica(pool, redis, lease=timedelta(seconds=15))
        with capture_logs() as records:
            assert str(replica.fails(agents_stale, AgentsStale())) == "PoolTimeout"
    told = [record["title"] for record in records if record["event"] == "event not stored"]
    assert told == ["flag stale agents failed"]


def test_a_sweep_cannot_carry_a_text() -> None:
    with pytest.raises(TypeError, match="whole numbers"):
        Sweep(counts={"name": "canary"})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="whole numbers"):
        Sweep(changed=True)
    with pytest.raises(TypeError, match="time zone"):
        Sweep(cutoff=datetime(2026, 1, 1))  # noqa: DTZ001 - a naive one is the point


def test_every_transaction_is_limited_below_the_lease(replica: Replica, sql: Connection[Any]) -> None:
    seen: list[str] = []

    def look(run: Run, _sizer: BatchSizer) -> None:
        names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        seen.extend(run.row("SELECT current_setting(%(name)s) AS value", name=name)["value"] for name in names)

    replica.run(wrapped(wraps_expired, look), WrapsExpired())
    assert seen == ["20s", "10s", "15s"]


def test_a_slot_whose_failure_could_not_be_written_down_is_run_by_its_retry(
    replica: Replica, sql: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL went away in the middle of the run, and stayed away while the failure was to be written."""
    expired(sql, 300)
    slot = now_slot(sql)

    def gone(run: Run, sizer: BatchSizer) -> None:
        sizer.rows = 100
        if rows(sql, RUNS):
            run.cursor.connection.close()

    with monkeypatch.context() as away:
        away.setattr(ledger, "fail", lambda *_: (_ for _ in ()).throw(psycopg.OperationalError))
        replica.fails(wrapped(wraps_expired, gone), WrapsExpired(), slot)
    (run,) = rows(sql, RUNS)
    changed, rest = run["changed"], 300 - run["changed"]
    assert run["outcome"] == "running"
    assert 0 < changed < 300

    assert replica.run(wraps_expired, WrapsExpired(), slot).changed == rest
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
            away.setattr(ledger, "record_failed", lambda *_, **__: (_ for _ in ()).throw(psycopg.OperationalError))
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
        away.setattr(ledger, "record_failed", lambda *_, **__: (_ for _ in ()).throw(psycopg.OperationalError))
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


def test_a_run_that_waits_for_others_holds_no_connection(database: str, redis: redis_py.Redis) -> None:
    with ConnectionPool[Connection[Any]](database, kwargs={"autocommit": True}, min_size=0, max_size=1) as pool:
        replica = Replica(pool, redis, lease=timedelta(seconds=60))

        class Waiting(Strategy):
            waited = False

            def step(self, run: Run, *, over: bool) -> Step:
                del run, over
                return Step({}, last=self.waited)

            def wait(self, stopping: Callable[[], bool]) -> None:
                del stopping
                with pool.connection(timeout=HUNG) as connection:
                    connection.execute("SELECT 1")
                self.waited = True

        replica.run(replace(wraps_expired, strategy=lambda _settings: Waiting()), WrapsExpired())
