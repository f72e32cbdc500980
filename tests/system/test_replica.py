"""`sb-worker run`: one address shows all of a replica."""

from __future__ import annotations

import os
import re
import signal
import sys
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis as redis_py
from psycopg import Connection

from app.demo.ports import reserved_port
from app.demo.servers import Redis
from tests.support.http_server import Receiver
from tests.support.processes import QUICK, Process, environment, finished
from tests.support.rows import FIXED, column, insert_agent
from tests.support.waiting import HUNG, eventually


@pytest.mark.skipif(sys.platform != "linux", reason="looks at Linux's /proc")
def test_one_address_shows_the_numbers_of_worker_and_notifier_and_what_the_processes_take(
    database: str, redis_server: Redis, redis: redis_py.Redis, tmp_path: Path, sql: Connection[Any]
) -> None:
    del redis  # emptied
    insert_agent(sql, "silent", last_seen_at=FIXED)
    with Receiver() as receiver, reserved_port() as port:
        env = environment(
            database,
            redis_server.url(),
            **QUICK,
            SB_NOTIFICATION_WEBHOOK_URL=f"{receiver.url}/hook",
            SB_NOTIFICATION_ALLOWED_NETWORKS="127.0.0.0/8",
            SB_NOTIFICATION_LOCAL_ADDR=f"127.0.0.1:{port}",
        )
        with Process(("sb-worker", "run"), env, tmp_path / "replica.log") as replica:
            replica.ready()
            eventually(lambda: replica.metric("worker_notification_attempts_total", outcome="delivered") >= 1)
            assert replica.metric("worker_sweep_rows_changed_total", task="agents-stale") == 1
            text = replica.get("/metrics").text
            assert 'worker_notification_dead{sink="webhook"} 0.0' in text
            assert set(
                re.findall(r'worker_scheduler_run_duration_seconds_bucket{le="([^"]+)",task="agents-stale"', text)
            ) == {*("0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "+Inf")}
            family = [psutil.Process(replica.popen.pid), *psutil.Process(replica.popen.pid).children(recursive=True)]
            assert replica.metric("process_open_fds") > max(process.num_fds() for process in family)
            most = sum(process.memory_info().rss for process in family)
            assert max(process.memory_info().rss for process in family) < replica.metric(
                "process_resident_memory_bytes"
            )
            assert replica.metric("process_resident_memory_bytes") < most
            notifier = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=HUNG, trust_env=False)
            assert notifier.status_code == 404  # scraped at both addresses, everything would count twice
            assert replica.metric("worker_metrics_incomplete") == 0
            assert replica.end() == 0


def test_one_process_serves_all_queues_where_the_operator_says_so(
    database: str, redis_server: Redis, redis: redis_py.Redis, tmp_path: Path, sql: Connection[Any]
) -> None:
    del redis  # emptied
    insert_agent(sql, "silent", last_seen_at=FIXED)
    with Receiver() as receiver:
        env = environment(
            database,
            redis_server.url(),
            **QUICK,
            SB_WORKER_ROLE="all",
            SB_NOTIFICATION_WEBHOOK_URL=f"{receiver.url}/hook",
            SB_NOTIFICATION_ALLOWED_NETWORKS="127.0.0.0/8",
        )
        with Process(("sb-worker", "run"), env, tmp_path / "replica.log") as replica:
            replica.ready()
            eventually(lambda: replica.metric("worker_notification_attempts_total", outcome="delivered") >= 1)
            assert replica.metric("worker_sweep_rows_changed_total", task="agents-stale") == 1
            assert len(psutil.Process(replica.popen.pid).children()) == 2  # that and the scheduler
            assert replica.end() == 0


PROCESSES = "secrets_bridge_worker.process"


def test_every_process_of_a_replica_gives_signs_of_life_and_those_that_drain_say_when_they_end(
    database: str, redis_server: Redis, redis: redis_py.Redis, tmp_path: Path, sql: Connection[Any]
) -> None:
    del redis  # emptied
    with reserved_port() as port:
        own = {**QUICK, "SB_NOTIFICATION_LOCAL_ADDR": f"127.0.0.1:{port}"}
        env = environment(database, redis_server.url(), **own)
        with Process(("sb-worker", "run"), env, tmp_path / "replica.log") as replica:
            replica.ready()
            query = (
                f"SELECT kind, ended_at IS NULL, ticked_at IS NOT NULL, cadences ->> 'wraps-expired' FROM {PROCESSES}"
            )
            alive = {("worker", True, False, "1.0"), ("notifier", True, False, "1.0"), ("scheduler", True, True, "1.0")}
            eventually(lambda: {*sql.execute(query.encode())} == alive)
            assert replica.end() == 0
            ended = f"SELECT kind FROM {PROCESSES} WHERE ended_at IS NOT NULL ORDER BY kind"
            assert column(sql, ended) == ["notifier", "worker"]


def test_after_two_replicas_and_a_kill_the_ledger_is_consistent_and_every_slot_can_be_explained(
    database: str, redis_server: Redis, redis: redis_py.Redis, tmp_path: Path, sql: Connection[Any]
) -> None:
    del redis  # emptied
    runs = "SELECT count(*) > {} FROM secrets_bridge_worker.sweep_run WHERE outcome = 'success' AND worker <> ALL ({})"
    workers = "SELECT array_agg(host || ':' || pid)::text FROM secrets_bridge_worker.process WHERE kind = 'worker'"
    with ExitStack() as stack:

        def start(number: int) -> Process:
            notifier = f"127.0.0.1:{stack.enter_context(reserved_port())}"
            env = environment(database, redis_server.url(), **QUICK, SB_NOTIFICATION_LOCAL_ADDR=notifier)
            return stack.enter_context(Process(("sb-worker", "run"), env, tmp_path / f"replica{number}.log")).ready()

        killed = start(1)
        eventually(lambda: column(sql, runs.format(16, "'{}'")) == [True])
        (before,) = column(sql, workers)
        os.killpg(killed.popen.pid, signal.SIGKILL)
        killed.popen.wait(HUNG)
        other = start(2)
        eventually(lambda: column(sql, runs.format(40, f"'{before}'")) == [True])
        eventually(lambda: column(sql, OPEN) == [])
        assert other.end() == 0

    asked = environment(database, redis_server.url(), **QUICK)
    verified = finished(["sb-worker", "verify", "-o", "json"], asked)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert len(verified.stdout.splitlines()) == 8
    (slot,) = column(
        sql, f"SELECT max(slot)::text FROM secrets_bridge_worker.sweep_run WHERE worker = ANY ('{before}')"
    )
    for seconds in range(-2, 3):
        when = (datetime.fromisoformat(slot) + timedelta(seconds=seconds)).isoformat()
        explained = finished(["sb-worker", "why", "wraps-expired", when], asked)
        assert explained.returncode == 0, explained.stdout + explained.stderr
        assert re.search("was run by|is covered by|was taken over by", explained.stdout), explained.stdout


#: Runs that those who were killed had left open; their locks had to run out first.
OPEN = (
    "SELECT id FROM secrets_bridge_worker.sweep_run WHERE outcome = 'running' AND started_at < now() - interval '2 s'"
)
