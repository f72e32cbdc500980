"""The brake: what it holds, what it lets pass, how a hold ends, and who is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import redis as redis_py
from psycopg import Connection
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool
from structlog.testing import capture_logs

from actors.reveal_sessions_expired import RevealSessionsExpired, reveal_sessions_expired
from actors.secrets_stale import SecretsStale, secrets_stale
from actors.wraps_expired import WrapsExpired, wraps_expired
from app.core.errors import NotDue, Reason
from app.core.events import Kind, Severity
from app.core.values import format_duration
from app.overview.model import State
from app.overview.sources.standings import Watched
from app.overview.watch import FleetWatch
from app.sweeping import lock
from app.sweeping.actor import SweepActor
from app.sweeping.lock import Refusal, Tick
from app.sweeping.runner import RunFailed
from app.sweeping.scans.due import Due
from app.sweeping.schedule import moment
from app.sweeping.steering import brake, pauses
from app.sweeping.steering.limits import parse_brake
from app.sweeping.steering.server import identity
from tests.support.replica import Replica
from tests.support.rights.acl import as_user
from tests.support.rows import FIXED, insert_environment, insert_secret, rows
from tests.sweeping.steering.hand import WHO, hand
from tests.sweeping.steering.test_by_hand import RUNS, STATE, STEADY, back, current

HOUR = timedelta(hours=1)
NAME = "wraps-expired"
TITLE = "sweep braked, nothing was changed"
LATER = FIXED + timedelta(days=36_500)
LEFT = "SELECT count(*) FROM secret_wraps"


def braked_by(text: str) -> WrapsExpired:
    return WrapsExpired(interval=STEADY, brake=parse_brake(text))


TENFOLD = braked_by("10x")


def expired(sql: Connection[Any], count: int) -> None:
    sql.execute(
        "INSERT INTO secret_wraps (encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash, byte_length,"
        " expires_at) SELECT '\\x01', '\\x02', '\\x03', 'k', '\\x04', 1, '2026-01-01' FROM generate_series(1, %s)",
        [count],
    )


def history(sql: Connection[Any], *changed: int) -> None:
    """Have the slot before this one have been run, and earlier ones that have changed so many rows."""
    sql.execute(
        "INSERT INTO secrets_bridge_worker.sweep_run (name, slot, worker, started_at, outcome, changed)"
        " SELECT %s, now() - n * %s, 'x', now() - n * interval '1 h', 'success', changed"
        " FROM unnest(%s::bigint[]) WITH ORDINALITY AS run (changed, n)",
        [NAME, STEADY, list(changed)],
    )
    sql.execute(
        "INSERT INTO secrets_bridge_worker.sweep_state (name, last_slot, previous_slot, token)"
        " VALUES (%s, %s, 'epoch', 1)",
        [NAME, moment(current(sql)) - STEADY],
    )


def run(replica: Replica, settings: WrapsExpired = TENFOLD) -> int:
    """Run the current slot; return how many rows it changed, -1 when it is held."""
    replica.redis.flushall()
    with replica.runner.pool.connection() as connection:
        slot = current(connection)
    try:
        return replica.run(wraps_expired, settings, slot).changed
    except NotDue as error:
        if error.reason is Reason.BRAKED:
            return -1
        raise


def state(sql: Connection[Any]) -> dict[str, Any]:
    (row,) = rows(sql, STATE)
    return row


@pytest.mark.parametrize(
    ("usual", "due", "changed"),
    [
        ((200,) * 20, 2_000, 2_000),
        ((200,) * 20, 2_001, -1),
        ((3,), 1_000, 1_000),  # small numbers never brake
        ((3,), 1_001, -1),
        ((100, 100, 100, 9_000, 9_000), 1_001, -1),  # the middle one, not the mean
        ((0,) * 25 + (400,) * 3, 4_000, 4_000),  # runs that changed nothing say nothing
        ((100,) * 20 + (9_000,) * 30, 1_001, -1),  # nor do those of long ago
    ],
)
def test_a_multiple_of_the_usual_number_is_the_limit(
    replica: Replica, sql: Connection[Any], usual: tuple[int, ...], due: int, changed: int
) -> None:
    history(sql, *usual)
    expired(sql, due)
    before = state(sql)["last_slot"]
    assert run(replica) == changed
    assert rows(sql, LEFT)[0]["count"] == (0 if changed > 0 else due)
    assert (state(sql)["last_slot"] == before) is (changed < 0)
    assert (state(sql)["braked_for"] is not None) is (changed < 0)


@pytest.mark.parametrize(("due", "changed"), [(25, 25), (26, -1)])
def test_a_share_of_the_table_is_the_limit(replica: Replica, sql: Connection[Any], due: int, changed: int) -> None:
    """Also for a sweeper's very first run."""
    for number in range(100):
        insert_secret(sql, str(number), FIXED if number < due else LATER)
    settings = SecretsStale(interval=STEADY, brake=parse_brake("25%,10x"))
    if changed == due:
        assert replica.run(secrets_stale, settings).changed == due
        return
    with pytest.raises(NotDue):
        replica.run(secrets_stale, settings)
    assert state(sql)["braked_for"] == "share"


def test_a_few_rows_never_brake_whatever_share_of_the_table_they_are(replica: Replica, sql: Connection[Any]) -> None:
    expired(sql, 20)
    assert run(replica, braked_by("1%")) == 20


def test_the_very_first_run_has_nothing_that_is_usual(replica: Replica, sql: Connection[Any]) -> None:
    expired(sql, 3_000)
    assert run(replica) == 3_000


def test_it_is_told_once_in_public_words_and_every_replica_knows(replica: Replica, sql: Connection[Any]) -> None:
    history(sql, 100)
    expired(sql, 1_500)
    with Replica(replica.runner.pool, replica.redis, lease=timedelta(minutes=1), name="test:2") as another:
        for each in (replica, another, replica):
            assert run(each) == -1
            back(sql, 1)  # the next slot
    (event,) = replica.events
    assert (event.severity, event.kind, event.title) == (Severity.ERROR, Kind.NOTICE, TITLE)
    assert event.detail == (
        "far more rows are due than usual; it goes on after 1h; `sb-worker sweep wraps-expired --approve` runs it now"
    )
    assert dict(event.metadata) == {"due_at_least": 1_001, "limit": 1_000, "usual": 100}
    assert [row["outcome"] for row in rows(sql, RUNS)] == ["success"]  # of the history: a held run is none
    assert (state(sql)["braked_for"], state(sql)["braked_rows"]) == ("usual", 1_001)


def test_ticks_that_are_held_count_as_not_due_and_others_do_not_ask(replica: Replica, sql: Connection[Any]) -> None:
    history(sql, 100)
    expired(sql, 1_500)
    slot = current(sql)
    tick = replica.acquire(wraps_expired, TENFOLD, slot)
    assert isinstance(tick, Tick)
    token = lock.current.set(tick)
    outcome = SweepActor(replica.runner, wraps_expired, TENFOLD).run()
    lock.current.reset(token)
    replica.locks.release(tick, done=outcome.done, claimed=outcome.claimed)
    assert replica.acquire(wraps_expired, TENFOLD, slot) is Refusal.DONE


def test_the_slots_that_it_held_are_no_catch_up_and_are_covered_in_the_end(
    replica: Replica, sql: Connection[Any]
) -> None:
    history(sql, 100)
    expired(sql, 1_500)
    assert run(replica) == -1
    for _ in range(3):
        back(sql, 1)
        assert run(replica) == -1
    sql.execute("DELETE FROM secret_wraps WHERE id IN (SELECT id FROM secret_wraps LIMIT 900)")
    assert run(replica) == 600  # few enough again
    assert rows(sql, RUNS)[-1]["covered"] == 3
    assert (state(sql)["braked_at"], state(sql)["braked_for"], state(sql)["braked_rows"]) == (None, None, None)
    assert len([event for event in replica.events if event.title == TITLE]) == 1


@pytest.mark.parametrize("text", ["10x", "10x,30m", "10x,never"])
def test_a_hold_ends_with_its_time(replica: Replica, sql: Connection[Any], text: str) -> None:
    settings = braked_by(text)
    history(sql, 100)
    expired(sql, 1_500)
    assert run(replica, settings) == -1
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET braked_at = now() - interval '29 min'")
    assert run(replica, settings) == -1
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET braked_at = now() - interval '61 min'")
    assert run(replica, settings) == (-1 if "never" in text else 1_500)
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET braked_at = now() + interval '1 d'")
    if "never" in text:  # a clock that was ahead
        assert run(replica, settings) == -1
        assert state(sql)["braked_at"] <= rows(sql, "SELECT now()")[0]["now"]


def test_who_approves_has_it_run_at_once_and_is_written_down(replica: Replica, sql: Connection[Any]) -> None:
    settings = braked_by("10x,never")
    history(sql, 100)
    expired(sql, 1_500)
    assert run(replica, settings) == -1
    with pytest.raises(NotDue) as held:
        hand(replica, wraps_expired, settings)
    assert held.value.reason is Reason.BRAKED
    assert hand(replica, wraps_expired, settings, approved=True).sweep.changed == 1_500
    assert (rows(sql, RUNS)[-1]["requested_by"], state(sql)["braked_for"]) == (WHO, None)
    assert state(sql)["approved_at"] is None  # it is done
    expired(sql, 1_500)
    back(sql, 1)
    assert run(replica, settings) == -1  # and holds for nothing else


def test_an_approval_holds_for_all_the_runs_that_it_takes_and_expires(replica: Replica, sql: Connection[Any]) -> None:
    history(sql, 100)
    expired(sql, 5_000)
    assert run(replica) == -1
    replica.runner.budget = timedelta(milliseconds=1)
    assert hand(replica, wraps_expired, TENFOLD, approved=True).handed_over
    assert state(sql)["approved_by"] == WHO
    back(sql, 1)
    assert 0 < run(replica) < 5_000
    left = rows(sql, LEFT)[0]["count"]
    assert left > 1_000
    back(sql, 1)
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET approved_at = now() - interval '61 min'")
    replica.runner.budget = timedelta(hours=1)
    sql.execute("DELETE FROM secrets_bridge_worker.sweep_run WHERE changed > 100")
    assert run(replica) == -1
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET approved_at = now()")
    assert run(replica) == left
    assert state(sql)["approved_at"] is None


def test_a_catch_up_is_never_held_however_many_runs_it_takes(replica: Replica, sql: Connection[Any]) -> None:
    history(sql, 100)
    back(sql, 2)
    expired(sql, 5_000)
    replica.runner.budget = timedelta(milliseconds=1)
    assert run(replica) > 0
    assert rows(sql, RUNS)[-1]["covered"] == 2
    replica.runner.budget = timedelta(hours=1)
    back(sql, 1)
    sql.execute("DELETE FROM secrets_bridge_worker.sweep_run WHERE changed > 100")
    assert run(replica) > 1_000
    assert rows(sql, LEFT)[0]["count"] == 0
    expired(sql, 1_500)
    back(sql, 1)
    sql.execute("DELETE FROM secrets_bridge_worker.sweep_run WHERE changed > 100")
    assert run(replica) == -1


def test_a_clock_that_only_jumped_is_no_restore(replica: Replica, sql: Connection[Any]) -> None:
    history(sql, 100)
    assert run(replica) == 0
    assert state(sql)["server"] is not None
    back(sql, 1000)
    expired(sql, 1_500)
    assert run(replica) == 1_500


@pytest.mark.parametrize("server", ["1:00000001", "now:promoted"])
def test_another_server_is_a_restored_backup_or_a_failover_and_its_catch_up_is_judged(
    replica: Replica, sql: Connection[Any], server: str
) -> None:
    history(sql, 100)
    assert run(replica) == 0
    known = state(sql)["server"]
    stored = server.replace("now", known.partition(":")[0])
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET server = %s", [stored])
    back(sql, 3)
    expired(sql, 1_500)
    assert run(replica) == -1
    assert "the database seems to be a restored backup" in replica.events[-1].detail
    sql.execute("DELETE FROM secret_wraps WHERE id IN (SELECT id FROM secret_wraps LIMIT 1490)")
    assert run(replica) == 10  # below its limits it goes on
    assert state(sql)["server"] == known


def test_a_mark_newer_than_the_ledger_is_a_restored_backup(replica: Replica, sql: Connection[Any]) -> None:
    history(sql, 100)
    assert run(replica) == 0
    slot = current(sql)
    back(sql, 3)
    expired(sql, 1_500)
    length = STEADY // timedelta(microseconds=1)
    replica.redis.flushall()
    tick = replica.acquire(wraps_expired, TENFOLD, slot)
    assert isinstance(tick, Tick)
    with pytest.raises(NotDue) as held:
        replica.runner.run(wraps_expired, TENFOLD, replace(tick, mark=slot - 2 * length))
    assert held.value.reason is Reason.BRAKED
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET braked_at = NULL, braked_for = NULL")
    assert replica.runner.run(wraps_expired, TENFOLD, replace(tick, mark=slot - 3 * length)).sweep.changed == 1_500


def test_the_lock_tells_the_mark_that_redis_has(replica: Replica, sql: Connection[Any]) -> None:
    replica.run(wraps_expired, TENFOLD, current(sql))
    tick = replica.locks.acquire(NAME, slot=None, sent=None, interval=STEADY)
    assert isinstance(tick, Tick)
    assert tick.mark == current(sql)


def test_what_was_paused_is_caught_up_although_its_ticks_were_marked(replica: Replica, sql: Connection[Any]) -> None:
    history(sql, 100)
    pauses.pause(sql, [NAME], HOUR, "x", "y")
    slot = current(sql)
    with pytest.raises(NotDue):
        replica.run(wraps_expired, TENFOLD, slot)
    back(sql, 3)
    pauses.resume(sql, [NAME], "x")
    expired(sql, 1_500)
    tick = replica.locks.acquire(NAME, slot=None, sent=None, interval=STEADY)
    assert isinstance(tick, Tick)
    assert replica.runner.run(wraps_expired, TENFOLD, replace(tick, mark=slot)).sweep.changed == 1_500


def test_without_the_setting_it_holds_nothing_and_lets_go_of_what_it_held(
    replica: Replica, sql: Connection[Any]
) -> None:
    history(sql, 100)
    expired(sql, 1_500)
    assert run(replica) == -1
    assert run(replica, WrapsExpired(interval=STEADY)) == 1_500
    assert state(sql)["braked_for"] is None


def test_another_setting_counts_from_the_next_tick_on(replica: Replica, sql: Connection[Any]) -> None:
    history(sql, 100)
    expired(sql, 1_500)
    assert run(replica) == -1
    assert run(replica, braked_by("20x")) == 1_500


def test_what_cannot_be_counted_in_time_is_held_and_told(replica: Replica, sql: Connection[Any]) -> None:
    history(sql, 100)
    expired(sql, 1)
    slow = Due("secret_wraps", "pg_sleep(600) IS NOT NULL", "expires_at")
    with capture_logs() as logs, pytest.raises(NotDue):
        replica.run(replace(wraps_expired, due=lambda _own: slow), TENFOLD, current(sql))
    assert [record["sqlstate"] for record in logs if record["event"] == "rows that are due not counted"] == ["57014"]
    assert (state(sql)["braked_for"], state(sql)["braked_rows"]) == ("uncounted", None)
    (event,) = replica.events
    assert "could not be counted;" in event.detail


@pytest.mark.parametrize(("due", "held"), [(2_000, False), (2_001, True)])
def test_what_a_run_counts_under_another_name_is_what_is_usual_of_it(
    replica: Replica, sql: Connection[Any], due: int, held: bool
) -> None:
    """Of reveal sessions, which are counted by the session, `changed` has the wraps as well."""
    name = "reveal-sessions-expired"
    sql.execute(
        "INSERT INTO secrets_bridge_worker.sweep_run (name, slot, worker, started_at, outcome, changed, counts)"
        """ VALUES (%s, '2026-01-01Z', 'x', '2026-01-01Z', 'success', 5000, '{"sessions_swept": 200}')""",
        [name],
    )
    sql.execute(  # rows that are odd are no reason to hold a run, nor usual
        "INSERT INTO secrets_bridge_worker.sweep_run (name, slot, worker, started_at, outcome, changed, counts)"
        " SELECT %s, moment, 'x', moment, 'success', 5000, counts"
        """   FROM unnest(ARRAY['[]', '1', '{"sessions_swept": "x"}', '{"sessions_swept": 1e30}']::jsonb[])"""
        "        WITH ORDINALITY AS odd (counts, number), make_interval(mins => number::int) AS later,"
        "        LATERAL (SELECT '2026-01-01Z'::timestamptz + later) AS at (moment)",
        [name],
    )
    project, environment = insert_environment(sql)
    sql.execute(
        "INSERT INTO reveal_sessions (user_id, project_id, environment_id, ttl_seconds, expires_at, wrap_ids)"
        " SELECT 'u', %s, %s, 60, '2026-01-01Z', '{}' FROM generate_series(1, %s)",
        [project, environment, due],
    )
    settings = RevealSessionsExpired(interval=STEADY, brake=parse_brake("10x"))
    if held:
        with pytest.raises(NotDue):
            replica.run(reveal_sessions_expired, settings)
    else:
        assert replica.run(reveal_sessions_expired, settings).counts["sessions_swept"] == due


def test_a_large_table_is_judged_by_its_statistics(replica: Replica, sql: Connection[Any]) -> None:
    sql.execute("ALTER TABLE secret_wraps ALTER COLUMN encrypted_value SET STORAGE PLAIN")
    sql.execute(
        "INSERT INTO secret_wraps (encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash, byte_length,"
        " expires_at) SELECT convert_to(repeat('x', 7000), 'UTF8'), '\\x02', '\\x03', 'k', '\\x04', 1,"
        " CASE WHEN n <= 600 THEN '2026-01-01' ELSE now() + interval '1 d' END FROM generate_series(1, 2600) AS n"
    )
    sql.execute("ANALYZE secret_wraps")
    with sql.cursor(row_factory=dict_row) as cursor:
        assert 2_400 < (brake._rows(cursor, "secret_wraps") or 0) < 2_800
    assert run(replica, braked_by("25%")) == 600
    sql.execute("UPDATE secret_wraps SET expires_at = '2026-01-01'")
    back(sql, 1)
    assert run(replica, braked_by("25%")) == -1


@pytest.fixture
def powerless(database: str, role: str) -> Iterator[Connection[Any]]:
    with psycopg.connect(database, user=role, autocommit=True) as connection:
        yield connection


def test_an_ordinary_role_may_ask_which_server_it_is(powerless: Connection[Any], sql: Connection[Any]) -> None:
    with powerless.transaction(), powerless.cursor(row_factory=dict_row) as cursor:
        found = identity(cursor)
    assert found is not None
    number, timeline = found.split(":")
    assert int(timeline, 16) >= 1
    assert rows(sql, "SELECT system_identifier::text AS id FROM pg_control_system()") == [{"id": number}]


def test_a_server_that_does_not_say_is_not_known(sql: Connection[Any], powerless: Connection[Any]) -> None:
    sql.execute("REVOKE EXECUTE ON FUNCTION pg_walfile_name FROM PUBLIC")
    with powerless.transaction(), powerless.cursor(row_factory=dict_row) as cursor:
        assert identity(cursor) is None
        assert cursor.execute("SELECT 1 AS fine").fetchone() == {"fine": 1}


def test_the_gauge_shows_it_in_every_replica_and_nobody_asks_for_a_scheduler(
    replica: Replica, sql: Connection[Any], database: str, redis: redis_py.Redis
) -> None:
    history(sql, 100)
    expired(sql, 1_500)
    assert run(replica) == -1
    back(sql, 10)
    with ConnectionPool[Connection[Any]](database, kwargs={"autocommit": True}, min_size=0, max_size=1) as pool:
        watched = [Watched(NAME, "secret_wraps", HOUR)]
        watch = FleetWatch(pool, as_user(redis), watched, namespace="secrets-bridge", retention=HOUR)
        with capture_logs() as logs:
            watch.look()
    assert watch.seen.standings[NAME].state is State.BRAKED
    assert [record for record in logs if "overdue" in record["event"]] == []


@pytest.mark.parametrize(("slots", "changed"), [(1, -1), (3, 5_000)])
def test_a_run_that_failed_lets_no_mass_pass_and_each_slot_that_was_tried_in_vain_counts_once(
    replica: Replica, sql: Connection[Any], database: str, slots: int, changed: int
) -> None:
    history(sql, *(200,) * 20)
    replica.runner.lease = timedelta(seconds=3)
    with psycopg.connect(database) as importer:
        importer.execute("LOCK TABLE secret_wraps IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(RunFailed):
            run(replica)
    expired(sql, 5_000)
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = last_slot - %s", [slots * STEADY])
    assert run(replica) == changed


@pytest.mark.parametrize("refusal", [psycopg.errors.LockNotAvailable, psycopg.errors.DataCorrupted])
def test_what_cannot_be_counted_is_held_whatever_the_reason(
    replica: Replica, sql: Connection[Any], monkeypatch: pytest.MonkeyPatch, refusal: type[psycopg.Error]
) -> None:
    def at_most(*_: object) -> int:
        raise refusal

    history(sql, *(200,) * 20)
    expired(sql, 5_000)
    monkeypatch.setattr(Due, "at_most", at_most)
    assert run(replica) == -1
    assert state(sql)["braked_for"] == "uncounted"


def test_a_hold_of_one_interval_ends_with_the_next_slot_however_late_that_is(
    replica: Replica, sql: Connection[Any]
) -> None:
    settings = braked_by(f"10x,{format_duration(STEADY)}")
    history(sql, 100)
    expired(sql, 1_500)
    assert run(replica, settings) == -1
    almost = STEADY - timedelta(seconds=3)
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET braked_at = now() - %s", [almost])
    back(sql, 1)
    assert run(replica, settings) == 1_500
