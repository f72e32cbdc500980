"""jobs-recovery and the connections whose discovery its jobs were."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import redis as redis_py
from psycopg import Connection
from psycopg_pool import ConnectionPool

from actors.discover_scheduler import DiscoverScheduler, discover_scheduler
from actors.jobs_recovery import JobsRecovery, jobs_recovery
from tests.support.replica import Replica
from tests.support.rights.grants import as_role
from tests.support.rows import FIXED, column, insert_connection, insert_job, rows
from tests.support.waiting import HUNG

STATES = "SELECT name, last_discover_status AS status FROM provider_connections"
#: What the api does when an agent asks for work, and when one has done its.
CLAIM = """
UPDATE sync_jobs SET claim_expires_at = now() + interval '30 s'
 WHERE id = %s AND status = 'claimed' AND claim_expires_at < now()
"""
COMPLETE = "UPDATE sync_jobs SET status = 'succeeded' WHERE id = %s AND status = 'claimed'"


def running(sql: Connection[Any], name: str) -> str:
    return insert_connection(sql, name, last_status="running", started_at=FIXED)


def job_of(sql: Connection[Any], connection: str, **columns: Any) -> str:
    payload = json.dumps({"connection_id": connection})
    return insert_job(sql, **{"job_type": "discover", "claim_expires_at": FIXED, "payload": payload, **columns})


def recover(replica: Replica) -> dict[str, int]:
    sweep = replica.run(jobs_recovery, JobsRecovery())
    counts = {name: number for name, number in sweep.counts.items() if number}
    return {"changed": sweep.changed, **{name: counts[name] for name in counts if name.endswith("failed")}}


def states(sql: Connection[Any]) -> dict[str, str]:
    return {row["name"]: row["status"] for row in rows(sql, STATES)}


def test_the_connection_of_an_expired_job_has_failed(replica: Replica, sql: Connection[Any]) -> None:
    connection = running(sql, "dead-agent")
    job_of(sql, connection)
    job_of(sql, running(sql, "upper").upper())
    job_of(sql, insert_connection(sql, "done", last_status="success", last_at=FIXED))
    job_of(sql, running(sql, "alive"), status="queued")
    running(sql, "of-no-job")
    for odd in ("not-a-uuid", "", "00000000-0000-4000-8000-000000000000"):
        job_of(sql, odd)
    insert_job(sql, job_type="discover", claim_expires_at=FIXED, payload="[]")

    assert recover(replica) == {"changed": 7, "connections_failed": 2}

    expected = {"dead-agent": "failure", "upper": "failure", "done": "success"}
    assert states(sql) == {**expected, "alive": "running", "of-no-job": "running"}
    (row,) = rows(sql, f"SELECT * FROM provider_connections WHERE id = '{connection}'")
    assert row["last_discover_error"] == "the claim of its job ran out"
    assert row["last_discover_at"] == row["last_discover_finished_at"] != FIXED
    assert dict(replica.events[0].metadata).items() >= {"flipped": 7, "connections_failed": 2}.items()

    replica.next_slot()
    assert recover(replica) == {"changed": 0}


def test_a_dead_agent_does_not_keep_its_connection_from_being_discovered(
    replica: Replica, sql: Connection[Any]
) -> None:
    insert_connection(sql, "c", interval=86_400)
    replica.run(discover_scheduler, DiscoverScheduler())
    sql.execute("UPDATE sync_jobs SET status = 'claimed', claim_expires_at = now() - interval '1 s'")
    assert recover(replica) == {"changed": 1, "connections_failed": 1}
    sql.execute("UPDATE provider_connections SET last_discover_at = now() - interval '1 d'")
    replica.next_slot()
    replica.redis.flushall()
    assert replica.run(discover_scheduler, DiscoverScheduler()).changed == 1


def test_a_connection_that_runs_for_another_job_goes_on(replica: Replica, sql: Connection[Any]) -> None:
    connection = running(sql, "c")
    job_of(sql, connection)
    job_of(sql, f"{{{connection}}}", status="queued", claim_expires_at=None)
    assert recover(replica) == {"changed": 1}
    assert states(sql) == {"c": "running"}


@pytest.mark.parametrize("statement", [CLAIM, COMPLETE], ids=["claimed again", "completed"])
def test_a_job_that_an_agent_has_taken_up_is_left_with_its_connection(
    database: str, replica: Replica, sql: Connection[Any], statement: str
) -> None:
    job = job_of(sql, running(sql, "c"))
    with psycopg.connect(database) as api:
        api.execute(statement.encode(), [job])
        assert recover(replica) == {"changed": 0}
        api.commit()
    replica.next_slot()
    assert recover(replica) == {"changed": 0}
    assert states(sql) == {"c": "running"}


def test_a_connection_that_cannot_be_written_costs_no_job_its_end(replica: Replica, sql: Connection[Any]) -> None:
    for name in ("a", "bad", "c"):
        job_of(sql, running(sql, name))
    sql.execute("ALTER TABLE provider_connections ADD CHECK (name <> 'bad' OR last_discover_status = 'running')")
    assert recover(replica) == {"changed": 3, "connections_failed": 2}
    assert states(sql) == {"a": "failure", "bad": "running", "c": "failure"}
    assert column(sql, "SELECT DISTINCT status FROM sync_jobs") == ["expired"]


def test_a_connection_that_somebody_holds_keeps_its_own_job_and_no_other(
    database: str, replica: Replica, sql: Connection[Any]
) -> None:
    for _ in range(300):
        insert_job(sql, claim_expires_at=FIXED)
    job_of(sql, running(sql, "held"))
    job_of(sql, running(sql, "free"))
    with psycopg.connect(database) as other:
        other.execute("SELECT FROM provider_connections WHERE name = 'held' FOR UPDATE")
        began = time.monotonic()
        assert recover(replica) == {"changed": 301, "connections_failed": 1}
        assert rows(sql, "SELECT counts FROM secrets_bridge_worker.sweep_run")[0]["counts"]["skipped_locked"] == 1
        assert time.monotonic() - began < replica.runner.lease.total_seconds() / 6  # one lock_timeout
    assert states(sql) == {"held": "running", "free": "failure"}
    replica.next_slot()
    assert recover(replica) == {"changed": 1, "connections_failed": 1}
    assert states(sql)["held"] == "failure"


def test_an_older_api_has_no_connections_to_fail(replica: Replica, sql: Connection[Any]) -> None:
    job_of(sql, running(sql, "c"))
    sql.execute("ALTER TABLE provider_connections DROP last_discover_status")
    assert recover(replica) == {"changed": 1}


def test_a_role_that_may_not_write_connections_recovers_jobs_all_the_same(
    database: str, role: str, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    job_of(sql, running(sql, "c"))
    sql.execute(f"GRANT USAGE ON SCHEMA secrets_bridge_worker TO {role}".encode())
    sql.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA secrets_bridge_worker TO {role}".encode())
    sql.execute(f"GRANT ALL ON sync_jobs TO {role}".encode())
    url, options = as_role(database, role), {"autocommit": True}
    with (
        ConnectionPool[Connection[Any]](url, kwargs=options, min_size=0, max_size=2, timeout=HUNG) as pool,
        Replica(pool, redis, lease=timedelta(minutes=1)) as replica,
    ):
        assert recover(replica) == {"changed": 1}
    assert states(sql) == {"c": "running"}
