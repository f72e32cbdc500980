"""The poller in real processes that are killed: each row claimed once a slot, and no result goes backwards."""

from __future__ import annotations

import itertools
import random
import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import redis as redis_py
from psycopg import Connection

from app.demo.servers import Redis
from tests.support.argocd import MASTER, ON, TOKEN, TREE, Argo, document, insert_endpoint, insert_observations, reply
from tests.support.http_server import Receiver, Reply, Seen
from tests.support.processes import SCHEDULER, WORKER, Process, environment
from tests.support.rows import column, rows
from tests.support.tls import Authority
from tests.support.waiting import HUNG_PROCESS, eventually

NAMES = [f"canary-app-{number:02}" for number in range(40)]
#: Writes down every claim and every result that PostgreSQL commits.
AUDIT = """
CREATE TABLE audit (n bigint GENERATED ALWAYS AS IDENTITY, application text, claimed timestamptz, polls integer,
                    revision bigint);
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
    INSERT INTO audit (application, claimed, polls, revision)
    VALUES (NEW.application_name,
            CASE WHEN NEW.last_polled_at IS DISTINCT FROM OLD.last_polled_at THEN NEW.last_polled_at END,
            CASE WHEN NEW.polls_count <> OLD.polls_count THEN NEW.polls_count END,
            CASE WHEN NEW.polls_count <> OLD.polls_count THEN (NEW.observed_state ->> 'sync_revision')::bigint END);
    RETURN NEW;
END $$;
CREATE TRIGGER audit AFTER UPDATE ON gitops_observations FOR EACH ROW EXECUTE FUNCTION audit();
"""
RUNNING = """
SELECT worker FROM secrets_bridge_worker.sweep_run WHERE name = 'gitops-poller' AND outcome = 'running'
 ORDER BY id DESC LIMIT 1
"""
POLLS = "SELECT count(*) FROM audit WHERE polls IS NOT NULL"
TWICE = """
SELECT count(*) FROM (SELECT FROM audit WHERE claimed IS NOT NULL
                       GROUP BY application, date_trunc('second', claimed) HAVING count(*) > 1) AS t
"""
BACKWARDS = """
SELECT count(*) FROM (SELECT revision <= lag(revision) OVER own OR polls <> lag(polls) OVER own + 1 AS wrong
                        FROM audit WHERE polls IS NOT NULL WINDOW own AS (PARTITION BY application ORDER BY n)) AS t
 WHERE wrong
"""


class Numbered(Argo):
    """An ArgoCD whose applications carry the number of the request that read them, and take a while to be read."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers = itertools.count(1)

    def _answer(self, seen: Seen) -> Reply:
        number = next(self._numbers)
        time.sleep(random.uniform(0.01, 0.15))
        if seen.headers["authorization"] != f"Bearer {TOKEN}":
            return Reply(401)
        name = seen.path.split("/")[4]
        if seen.path.endswith("/resource-tree"):
            return reply(TREE)
        sync = {"status": "Synced", "revision": str(number)}
        return reply({**document(name), "status": {"health": {"status": "Progressing"}, "sync": sync}})


def test_pollers_that_are_killed_never_poll_twice_a_slot_nor_write_an_older_result(
    database: str, redis_server: Redis, redis: redis_py.Redis, sql: Connection[Any], tmp_path: Path
) -> None:
    sql.execute(AUDIT)
    authority = Authority(tmp_path)
    stand_in = Numbered()
    env = environment(
        database,
        redis_server.url(),
        **ON,
        SB_SWEEP_GITOPS_POLL_INTERVAL="1s",
        SB_SWEEP_GITOPS_TIMEOUT_INTERVAL="1s",
        SB_WORKER_LOCK_LEASE="2s",
        LOG_LEVEL="debug",
    )
    kills, logs = 0, list[Path]()
    with Receiver(stand_in, tls=authority.server()) as server, ExitStack() as stack:
        endpoints = [
            insert_endpoint(sql, f"canary-{number}", server.url, tls_ca_pem=authority.file.read_text())
            for number in range(2)
        ]
        for number, name in enumerate(NAMES):
            insert_observations(sql, endpoints[number % 2], name)

        def start(words: tuple[str, ...], name: str) -> Process:
            logs.append(tmp_path / name)
            return stack.enter_context(Process(words, env, tmp_path / name))

        worker = (*WORKER, "--queues", "sweeps")

        def holder() -> tuple[Process, psutil.Process] | None:
            """Return who is in the middle of a run; what a dead one left open does not count."""
            for name in column(sql, RUNNING):
                with suppress(psutil.NoSuchProcess):
                    child = psutil.Process(int(name.rpartition(":")[2]))
                    return next(((found, child) for found in workers if child in found.workers), None)
            return None

        def more_polls(before: list[int]) -> bool:
            return column(sql, POLLS) > before

        workers = [start(worker, f"worker-{number}") for number in range(2)]
        for number in range(2):
            start(SCHEDULER, f"scheduler-{number}")
        eventually(lambda: column(sql, "SELECT count(*) FROM audit WHERE polls > 1")[0] > 0)
        for turn in range(5):
            victim, child = eventually(holder)
            child.kill()  # which takes its main process with it
            victim.popen.wait(HUNG_PROCESS)
            kills += 1
            if turn == 2:
                redis.flushall()
            workers[workers.index(victim)] = start(worker, f"worker-{turn + 2}")
            eventually(partial(more_polls, column(sql, POLLS)))
        eventually(lambda: column(sql, "SELECT min(polls_count) FROM gitops_observations")[0] >= 4)
        metrics = "".join(process.get("/metrics").text for process in workers)
        shown = "".join(log.read_text() for log in logs)
        in_redis = b"".join(redis.dump(key) or b"" for key in redis.keys("*"))

    assert kills == 5
    assert column(sql, TWICE) == [0]
    assert column(sql, BACKWARDS) == [0]
    assert column(sql, POLLS)[0] >= 4 * len(NAMES)
    outcomes = {row["outcome"] for row in rows(sql, "SELECT outcome FROM secrets_bridge_worker.sweep_run")}
    assert "success" in outcomes
    assert "interrupted" in outcomes
    assert {(seen.method, seen.path.removesuffix("/resource-tree").rpartition("/")[0]) for seen in server.seen} == {
        ("GET", "/api/v1/applications")
    }
    # Neither the token nor the key nor a row's content is anywhere but where it belongs.
    for canary in (TOKEN, MASTER, "canary-app", "canary-0", server.url, "BEGIN CERTIFICATE"):
        assert canary not in shown, canary
        assert canary not in metrics, canary
        assert canary.encode() not in in_redis, canary
        assert canary not in repr(rows(sql, "TABLE secrets_bridge_worker.sweep_run")), canary
        assert canary not in repr(rows(sql, "TABLE secrets_bridge_worker.notification_event")), canary
    assert 'worker_gitops_polls_total{outcome="ok"}' in metrics
    assert 'worker_gitops_polls_total{outcome="timeout"} 0.0' in metrics
