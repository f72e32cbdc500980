"""Replicas of this release and of the one before work side by side, on the way there and on the way back."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest
import redis as redis_py
from psycopg import Connection

from app.demo.servers import Redis
from app.storage import migrations
from tests.deploy.releases import Replicas, release_before, this_release
from tests.support.http_server import Receiver
from tests.support.processes import PATIENT, QUICK, environment
from tests.support.rows import FIXED, column, insert_agent, insert_job, insert_secret, insert_wrap
from tests.support.waiting import eventually

RUNS = """
SELECT name, slot, covered, slot - lag(slot) OVER (PARTITION BY name ORDER BY slot)
  FROM secrets_bridge_worker.sweep_run WHERE outcome = 'success' ORDER BY name, slot
"""
CHANGED = "SELECT coalesce(sum(changed), 0)::int FROM secrets_bridge_worker.sweep_run"
OTHERWISE = "SELECT name, outcome, error_class FROM secrets_bridge_worker.sweep_run WHERE outcome <> 'success'"
UNDELIVERED = """
SELECT count(*) FROM secrets_bridge_worker.notification_delivery
 WHERE target = 'webhook' AND state NOT IN ('delivered', 'digested', 'suppressed')
"""
EVERY = timedelta(seconds=1)


class Load:
    """Rows that fall due, four at a time, a few times a second, until it is stopped."""

    def __init__(self, database: str) -> None:
        self.inserted = 0
        self._database = database
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._insert)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop; from here on `inserted` is all there was."""
        self._stopped.set()
        self._thread.join()

    def _insert(self) -> None:
        with psycopg.connect(self._database, autocommit=True) as sql:
            while not self._stopped.wait(0.2):
                insert_wrap(sql, FIXED)
                insert_secret(sql, f"ref-{self.inserted}", FIXED)
                insert_agent(sql, f"agent-{self.inserted}", last_seen_at=FIXED)
                insert_job(sql, claim_expires_at=FIXED)
                self.inserted += 4


@pytest.fixture
def env(owner_database: str, redis: redis_py.Redis, redis_server: Redis) -> dict[str, str]:
    """Return an environment in which a process may make its schema: that is what this is about."""
    del redis  # emptied
    return environment(owner_database, redis_server.url(), **QUICK | PATIENT)


def test_replica_by_replica_there_and_back_each_slot_is_run_once(
    env: dict[str, str], owner_database: str, sql: Connection[Any], tmp_path: Path
) -> None:
    old, new = release_before(tmp_path / "before"), this_release()
    assert old.schema() < new.schema() == migrations.VERSION
    sql.execute("DROP SCHEMA secrets_bridge_worker CASCADE")
    with Receiver() as receiver, Load(owner_database) as load, ExitStack() as stack:

        def work_goes_on() -> None:
            inserted = load.inserted + 4
            eventually(lambda: column(sql, CHANGED)[0] >= inserted)

        hook = {
            "SB_NOTIFICATION_WEBHOOK_URL": f"{receiver.url}/hook",
            "SB_NOTIFICATION_ALLOWED_NETWORKS": "127.0.0.0/8",
            "SB_NOTIFICATION_REPEAT_INTERVAL": "0s",
            "SB_NOTIFICATION_PACE": "0s",
        }
        replicas = Replicas({**env, **hook}, tmp_path, stack)
        running = [replicas.start(old), replicas.start(old)]
        for replica in running:
            replica.ready()
        assert migrations.installed(sql) == old.schema()
        work_goes_on()
        for release in (new, new, old, old):  # the update, and the way back
            running.append(replicas.start(release).ready())
            work_goes_on()
            assert running.pop(0).end() == 0
            work_goes_on()
            assert migrations.installed(sql) == new.schema()
        load.stop()
        eventually(lambda: column(sql, CHANGED) == [load.inserted])
        eventually(lambda: column(sql, UNDELIVERED) == [0])
        for replica in running:
            assert replica.end() == 0

    assert column(sql, CHANGED) == [load.inserted]
    assert sql.execute(OTHERWISE).fetchall() == []
    runs = sql.execute(RUNS).fetchall()
    assert len({(name, slot) for name, slot, *_ in runs}) == len(runs)
    missed = [run for run in runs if run[3] is not None and run[3] != EVERY * (run[2] + 1) and run[0] in SWEPT]
    assert missed == []
    ids = [request.headers["webhook-id"] for request in receiver.seen]
    assert len(set(ids)) == len(ids) > 0
    for replica in replicas.all:
        assert "Traceback" not in replica.text
        assert [record for record in replica.records if record["level"] == "ERROR"] == []


#: Sweepers with a cadence of EVERY.
SWEPT = {"wraps-expired", "secrets-stale", "agents-stale", "jobs-recovery"}
