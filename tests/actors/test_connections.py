"""Discovery of provider connections: who is due gets one job, whoever else wants it, and none runs for ever."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
import redis as redis_py
import structlog
from psycopg import Connection

from actors.discover_scheduler import DiscoverScheduler, discover_scheduler
from actors.discover_stuck import DiscoverStuck, discover_stuck
from app.core.errors import NotDue
from app.core.events import Severity
from app.discovery.targets import parse
from tests.actors.test_cutoffs import SECOND, TICK, once
from tests.support.replica import Replica
from tests.support.rows import FIXED, column, insert_connection, insert_job, rows
from tests.support.waiting import HUNG

JOBS = "SELECT payload ->> 'connection_id' FROM sync_jobs WHERE payload ? 'connection_id' ORDER BY created_at"
STATES = "SELECT name, last_discover_status AS status FROM provider_connections"
LOCK = "secrets-bridge:lock:discover:{}"
#: What the api does for an admin once it has the lock, and when a job has been done.
START_NOW = """
WITH started AS (
    UPDATE provider_connections SET last_discover_status = 'running', last_discover_started_at = now(),
           last_discover_error = NULL WHERE id = %(id)s RETURNING id, type, scope, cluster_name)
INSERT INTO sync_jobs (job_type, status, correlation_id, agent_scope, payload)
SELECT 'discover', 'queued', gen_random_uuid(), jsonb_build_object('cluster', cluster_name), jsonb_build_object(
       'connection_id', id, 'target_provider_type', type, 'target_provider_config', scope, 'cluster_name', cluster_name)
  FROM started
"""
FINISH = """
UPDATE provider_connections SET last_discover_status = 'success', last_discover_at = now(),
       last_discover_finished_at = now() WHERE id = %s
"""


def listed(**more: Any) -> DiscoverScheduler:
    """Return settings with a target of the environment."""
    return DiscoverScheduler(targets=parse(json.dumps([{"cluster": "c", "provider": "vault"}])), **more)


def discover(replica: Replica, own: DiscoverScheduler | None = None) -> dict[str, int]:
    sweep = replica.run(discover_scheduler, own or DiscoverScheduler())
    return {"changed": sweep.changed, **{name: number for name, number in sweep.counts.items() if number}}


def minute_passes(replica: Replica) -> None:
    """Have a slot pass, and with it the time in which locks run out."""
    replica.next_slot()
    replica.redis.flushall()


def states(sql: Connection[Any]) -> dict[str, str]:
    return {row["name"]: row["status"] for row in rows(sql, STATES)}


def now_of(sql: Connection[Any]) -> datetime:
    (now,) = column(sql, "SELECT now()")
    assert isinstance(now, datetime)
    return now


def refuse(sql: Connection[Any], table: str, condition: str, action: str) -> None:
    sql.execute(
        f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {condition} THEN"
        " RAISE EXCEPTION 'canary-row-content hvs.ABCDEFGHIJKLMNOPQRSTUVWX'; END IF; RETURN NEW; END $$".encode()
    )
    sql.execute(f"CREATE TRIGGER refuse BEFORE {action} ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()".encode())


# -------------------------------------------------------------------------------------------------- who is due


def test_a_connection_that_is_due_gets_the_job_of_discover_now(replica: Replica, sql: Connection[Any]) -> None:
    id_ = insert_connection(sql, "vault-prod")

    assert discover(replica) == {"changed": 1}

    (job,) = rows(sql, "SELECT * FROM sync_jobs")
    assert (job["job_type"], job["status"], job["request_id"]) == ("discover", "queued", None)
    assert job["agent_scope"] == {"cluster": "prod-1", "cluster_name": "prod-1"}
    assert job["payload"] == {
        "connection_id": id_,
        "target_provider_type": "vault",
        "target_provider_config": {"kvPrefix": "apps"},
        "cluster_name": "prod-1",
    }
    (row,) = rows(sql, "SELECT * FROM provider_connections")
    assert (row["last_discover_status"], row["last_discover_at"], row["last_discover_error"]) == ("running", None, None)
    assert now_of(sql) - row["last_discover_started_at"] < timedelta(seconds=HUNG)
    assert [(e.severity, e.title, dict(e.metadata)) for e in replica.events] == [
        (Severity.INFO, "discover jobs enqueued", {"enqueued": 1})
    ]


def test_due_is_whose_interval_has_passed(replica: Replica, sql: Connection[Any]) -> None:
    now = now_of(sql)
    for name, interval, ago in (("due", 300, 301), ("on", 300, 300), ("later", 300, 240), ("long", 86_400, 80_000)):
        insert_connection(sql, name, interval=interval, last_at=now - ago * SECOND, last_status="success")
    insert_connection(sql, "failed", interval=60, last_at=now - 61 * SECOND, last_status="failure")
    insert_connection(sql, "disabled", status="disabled")
    insert_connection(sql, "not-enabled", enabled=False)
    insert_connection(sql, "no-cluster", enabled=False, cluster=None)
    insert_connection(sql, "running", last_at=now - 999 * SECOND, last_status="running", started_at=now - 999 * SECOND)
    assert discover(replica) == {"changed": 3}
    running = {name for name, status in states(sql).items() if status == "running"}
    assert running == {"due", "on", "failed", "running"}


def test_a_connection_that_runs_is_not_due_in_any_tick(
    replica: Replica, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    id_ = insert_connection(sql, "c", interval=60)
    assert discover(replica) == {"changed": 1}
    for status in ("queued", "claimed", "expired"):
        sql.execute("UPDATE sync_jobs SET status = %s", [status])
        minute_passes(replica)
        assert discover(replica) == {"changed": 0}
    sql.execute(FINISH, [id_])
    minute_passes(replica)
    assert discover(replica) == {"changed": 0}
    sql.execute("UPDATE provider_connections SET last_discover_at = now() - interval '60 s'")
    minute_passes(replica)
    assert discover(replica) == {"changed": 1}


def test_many_connections_are_started_in_one_run(replica: Replica, sql: Connection[Any]) -> None:
    for number in range(600):
        insert_connection(sql, f"c{number}")
    assert discover(replica) == {"changed": 600}
    assert len(set(column(sql, JOBS))) == 600


def test_a_run_without_time_starts_some_and_gives_the_other_locks_back(
    replica: Replica, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    for number in range(300):
        insert_connection(sql, f"c{number:03}")
    replica.runner.budget = timedelta(microseconds=1)
    assert discover(replica) == {"changed": 256}
    assert len(list(redis.scan_iter(LOCK.format("*")))) == 256
    replica.next_slot()
    assert discover(replica) == {"changed": 44}


def test_no_more_locks_are_taken_than_there_is_time_to_use(
    replica: Replica, sql: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a call of Redis, in which an admin is refused."""
    for number in range(600):
        insert_connection(sql, f"c{number:03}")
    take, taken = redis_py.Redis.set, []

    def count(*args: Any, **options: Any) -> Any:
        taken.append(args[1])
        return take(*args, **options)

    monkeypatch.setattr(redis_py.Redis, "set", count)
    replica.runner.budget = timedelta(microseconds=1)
    for started in (256, 256, 88):
        taken.clear()
        assert discover(replica) == {"changed": started}
        assert len(set(taken)) == len(taken) == started
        replica.next_slot()


# ------------------------------------------------------------------------------------------ twice the same, never


@pytest.mark.parametrize(
    "form",
    [str.upper, "{{{}}}".format, "urn:uuid:{}".format, lambda id_: id_.replace("-", "")],
    ids=["upper", "braces", "urn", "hex"],
)
def test_an_open_job_of_the_connection_stands_in_the_way_whoever_made_it(
    replica: Replica, sql: Connection[Any], redis: redis_py.Redis, form: Callable[[str], str]
) -> None:
    id_ = insert_connection(sql, "c")
    job = insert_job(sql, job_type="discover", status="claimed", payload=json.dumps({"connection_id": form(id_)}))
    insert_job(sql, job_type="discover", status="queued", payload='{"connection_id": null}')
    assert discover(replica) == {"changed": 0, "already_open": 1}
    assert redis.exists(LOCK.format(id_)) == 0
    sql.execute("UPDATE sync_jobs SET status = 'succeeded' WHERE id = %s", [job])
    replica.next_slot()
    assert discover(replica) == {"changed": 1}


def test_an_admin_a_second_later_is_told_that_it_runs(
    replica: Replica, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    id_ = insert_connection(sql, "c")
    assert discover(replica) == {"changed": 1}
    assert redis.set(LOCK.format(id_), "0" * 32, nx=True, ex=60) is None  # which the api answers with 409
    assert 0 < redis.pttl(LOCK.format(id_)) <= 60_000
    assert len(redis.get(LOCK.format(id_)) or b"") == 32


def test_what_an_admin_has_just_started_is_left_alone(
    replica: Replica, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    id_ = insert_connection(sql, "c")
    other = insert_connection(sql, "other")
    redis.set(LOCK.format(id_), "0" * 32, nx=True, ex=60)  # and the api is about to write
    assert discover(replica) == {"changed": 1, "skipped_locked": 1}
    assert column(sql, JOBS) == [other]
    sql.execute(START_NOW, {"id": id_})
    minute_passes(replica)
    assert discover(replica) == {"changed": 0}
    assert redis.get(LOCK.format(id_)) is None
    assert sorted(column(sql, JOBS)) == sorted([id_, other])


def test_a_lock_that_another_worker_left_behind_delays_its_connection_and_no_other(
    replica: Replica, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    left = insert_connection(sql, "left")
    insert_connection(sql, "other")
    redis.set(LOCK.format(left), "f" * 32, ex=7200)
    assert discover(replica) == {"changed": 1, "skipped_locked": 1}
    assert redis.get(LOCK.format(left)) == b"f" * 32
    redis.delete(LOCK.format(left))
    replica.next_slot()
    assert discover(replica) == {"changed": 1}


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE provider_connections SET status = 'disabled'",
        "UPDATE provider_connections SET last_discover_status = 'running', last_discover_started_at = now()",
        "UPDATE provider_connections SET last_discover_at = now(), last_discover_status = 'success'",
        "DELETE FROM provider_connections",
    ],
)
def test_what_changes_before_it_is_started_is_not(
    replica: Replica, sql: Connection[Any], redis: redis_py.Redis, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at what is due and the start are the locks of Redis, and the api's writes."""
    id_ = insert_connection(sql, "c")
    take = redis_py.Redis.set

    def then_change(*args: Any, **options: Any) -> Any:
        answer = take(*args, **options)
        sql.execute(change.encode())
        return answer

    monkeypatch.setattr(redis_py.Redis, "set", then_change)
    assert discover(replica)["changed"] == 0
    assert column(sql, JOBS) == []
    assert redis.exists(LOCK.format(id_)) == 0


def test_a_row_that_the_api_is_writing_is_not_waited_for(
    database: str, replica: Replica, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    id_ = insert_connection(sql, "c")
    with psycopg.connect(database) as api:
        api.execute(START_NOW, {"id": id_})
        assert discover(replica) == {"changed": 0, "skipped_locked": 1}
        api.commit()
    minute_passes(replica)
    assert discover(replica) == {"changed": 0}
    assert column(sql, JOBS) == [id_]


# -------------------------------------------------------------------------------------------------- one bad row


def test_a_connection_that_cannot_be_started_is_alone_with_it(
    replica: Replica, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    ids = {name: insert_connection(sql, name) for name in ("a", "bad", "c")}
    refuse(sql, "sync_jobs", f"NEW.payload ->> 'connection_id' = '{ids['bad']}'", "INSERT")

    assert str(replica.fails(discover_scheduler, DiscoverScheduler())) == "PartlyFailed"

    assert sorted(column(sql, JOBS)) == sorted([ids["a"], ids["c"]])
    assert states(sql) == {"a": "running", "bad": "failure", "c": "running"}
    (error,) = column(sql, "SELECT last_discover_error FROM provider_connections WHERE name = 'bad'")
    assert error == "enqueue failed: RaiseException P0001"
    assert [event.title for event in replica.events] == [
        "discover jobs enqueued",
        "some discover targets failed to enqueue",
    ]
    assert redis.exists(LOCK.format(ids["bad"])) == 0

    # The retry finds it due, and nobody else.
    assert str(replica.fails(discover_scheduler, DiscoverScheduler())) == "PartlyFailed"
    sql.execute("DROP TRIGGER refuse ON sync_jobs")
    assert discover(replica) == {"changed": 1}
    assert states(sql)["bad"] == "running"


def test_a_row_that_cannot_be_written_at_all_is_alone_too(replica: Replica, sql: Connection[Any]) -> None:
    for name in ("a", "bad", "c"):
        insert_connection(sql, name)
    refuse(sql, "provider_connections", "OLD.name = 'bad'", "UPDATE")
    assert str(replica.fails(discover_scheduler, DiscoverScheduler())) == "PartlyFailed"
    assert len(column(sql, JOBS)) == 2


# ----------------------------------------------------------------------------------------- the environment's list


def told(work: Callable[[], object]) -> list[str]:
    with structlog.testing.capture_logs() as logs:
        work()
    return [line["event"] for line in logs if "SB_DISCOVER_TARGETS_JSON" in line["event"]]


@pytest.mark.parametrize("due", [True, False])
def test_the_list_is_used_only_while_no_connection_is_enabled(
    replica: Replica, sql: Connection[Any], due: bool
) -> None:
    insert_connection(sql, "c", last_at=None if due else now_of(sql))
    said = told(lambda: discover(replica, listed()))
    assert [line.partition(";")[0] for line in said] == [
        "SB_DISCOVER_TARGETS_JSON is ignored because DB-backed discover targets exist"
    ]
    assert column(sql, "SELECT count(*) FROM sync_jobs") == [int(due)]


@pytest.mark.parametrize(
    "columns", [None, {"enabled": False}, {"status": "disabled"}], ids=["none", "not enabled", "disabled"]
)
def test_without_an_enabled_connection_the_list_is_used(
    replica: Replica, sql: Connection[Any], columns: dict[str, Any] | None
) -> None:
    if columns is not None:
        insert_connection(sql, "c", **columns)
    own = listed()
    said = told(lambda: discover(replica, own))
    assert [line.partition(";")[0] for line in said] == ["SB_DISCOVER_TARGETS_JSON fallback is in use"]
    assert column(sql, "SELECT payload ->> 'target_name' FROM sync_jobs") == ["vault@c"]


def test_the_list_keeps_its_own_interval(replica: Replica, sql: Connection[Any], redis: redis_py.Redis) -> None:
    own = listed(interval=timedelta(days=3650))  # of which no slot ends while this runs
    said = told(lambda: discover(replica, own))
    sql.execute("UPDATE sync_jobs SET status = 'succeeded'")
    minute_passes(replica)
    said += told(lambda: discover(replica, own))
    assert column(sql, "SELECT count(*) FROM sync_jobs") == [1]
    assert len(said) == 1


def test_without_a_list_and_without_the_table_the_sweep_rests(replica: Replica, sql: Connection[Any]) -> None:
    insert_connection(sql, "c")
    sql.execute("ALTER TABLE provider_connections RENAME discover_interval_seconds TO elsewhere")  # an older api
    with pytest.raises(NotDue):
        discover(replica)
    assert told(lambda: discover(replica, listed())) == []
    assert column(sql, "SELECT payload ->> 'target_name' FROM sync_jobs") == ["vault@c"]
    sql.execute("ALTER TABLE provider_connections RENAME elsewhere TO discover_interval_seconds")
    replica.next_slot()
    assert discover(replica) == {"changed": 1}


# ----------------------------------------------------------------------------------------------------- stuck


def test_what_runs_for_longer_than_twice_its_interval_has_failed(database: str, sql: Connection[Any]) -> None:
    for name, interval, ago in (
        ("before", 60, timedelta(seconds=120) + TICK),
        ("on", 60, timedelta(seconds=120)),
        ("after", 60, timedelta(seconds=120) - TICK),
        ("long", 86_400, timedelta(hours=47)),
        ("longest", 86_400, timedelta(hours=49)),
    ):
        insert_connection(sql, name, interval=interval, last_status="running", started_at=FIXED - ago)
    insert_connection(sql, "nobody-knows", last_status="running")
    insert_connection(sql, "by-hand", enabled=False, last_status="running", started_at=FIXED - timedelta(hours=1))
    for status in ("success", "failure"):
        insert_connection(sql, status, last_status=status, started_at=FIXED - timedelta(days=9))

    assert once(database, discover_stuck, DiscoverStuck()) == {"changed": 4}

    failed = rows(sql, "SELECT * FROM provider_connections WHERE last_discover_error IS NOT NULL")
    assert {row["name"] for row in failed} == {"before", "longest", "nobody-knows", "by-hand"}
    for row in failed:
        assert row["last_discover_status"] == "failure"
        assert row["last_discover_error"] == "no result within twice the interval"
        assert row["last_discover_at"] == row["last_discover_finished_at"] != FIXED


def test_a_stuck_connection_is_due_again_after_its_interval(replica: Replica, sql: Connection[Any]) -> None:
    insert_connection(sql, "c", last_status="running", started_at=FIXED)
    assert discover(replica) == {"changed": 0}
    assert replica.run(discover_stuck, DiscoverStuck()).changed == 1
    replica.next_slot()
    assert discover(replica) == {"changed": 0}
    assert replica.run(discover_stuck, DiscoverStuck()).changed == 0
    sql.execute("UPDATE provider_connections SET last_discover_at = now() - interval '300 s'")
    replica.next_slot()
    assert discover(replica) == {"changed": 1}
    assert [event.title for event in replica.events] == ["stuck discoveries marked failed", "discover jobs enqueued"]


def test_a_result_that_comes_at_the_last_moment_wins(database: str, replica: Replica, sql: Connection[Any]) -> None:
    id_ = insert_connection(sql, "c", last_status="running", started_at=FIXED)
    with psycopg.connect(database) as api:
        api.execute(FINISH, [id_])
        assert replica.run(discover_stuck, DiscoverStuck()).changed == 0
        api.commit()
    replica.next_slot()
    assert replica.run(discover_stuck, DiscoverStuck()).changed == 0
    assert states(sql) == {"c": "success"}
