"""Traces of real processes: from the scheduler's tick to the receiver's answer, and nothing in them but names."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from psycopg import Connection

from app.demo.ports import reserved_port
from app.demo.servers import Redis
from tests.support.argocd import ON, TOKEN, Argo, document, insert_endpoint, insert_observations
from tests.support.http_server import Receiver, Reply, Rude
from tests.support.processes import PATIENT, QUICK, SCHEDULER, WORKER, Process, environment
from tests.support.rows import FIXED, column, insert_agent
from tests.support.waiting import eventually
from tests.tracing.collector import Collector, Sent, body

SWEEPER = (*WORKER, "--queues", "sweeps")
NOTIFIER = (*WORKER, "--queues", "sinks")
LOCAL = {"SB_NOTIFICATION_ALLOWED_NETWORKS": "127.0.0.0/8"}
CANARY = "canary-of-a-secret"
SUCCEEDED = "SELECT count(*) FROM secrets_bridge_worker.sweep_run WHERE outcome = 'success'"


@pytest.fixture
def env(database: str, redis_server: Redis, redis: redis_py.Redis) -> dict[str, str]:
    return environment(database, redis_server.url(), **QUICK | PATIENT | LOCAL)


def _hang(_connection: socket.socket, over: threading.Event) -> None:
    over.wait()


def _changed(collector: Collector) -> Sent | None:
    return next((span for span in collector.named("run", "agents-stale") if span.facts.get("changed")), None)


def test_a_trace_goes_from_the_tick_to_the_receivers_answer(
    env: dict[str, str], tmp_path: Path, sql: Connection[Any]
) -> None:
    insert_agent(sql, "silent", last_seen_at=FIXED)
    with Collector() as collector, Receiver() as receiver:
        env |= collector.url_of_everything | {"SB_NOTIFICATION_WEBHOOK_URL": receiver.url}
        with (
            Process(SWEEPER, env, tmp_path / "w.log") as worker,
            Process(NOTIFIER, env, tmp_path / "n.log") as told,
            Process(SCHEDULER, env, tmp_path / "s.log"),
        ):
            attempt: Sent = eventually(lambda: next(iter(collector.named("attempt", "webhook")), None))
            delivery: Sent = eventually(lambda: collector.parent(attempt))
            run: Sent = eventually(lambda: collector.parent(delivery))
            tick: Sent = eventually(lambda: collector.parent(run))
            assert [span.name for span in (tick, run, delivery, attempt)] == [
                *("tick agents-stale", "run agents-stale", "delivery webhook", "attempt webhook")
            ]
            assert [span.role for span in (tick, run, delivery, attempt)] == [
                *("scheduler", "worker", "notifier", "notifier")
            ]
            assert {span.trace for span in (tick, run, delivery, attempt)} == {tick.trace}
            assert not tick.parent
            batches = [span for span in collector.named("batch", "agents-stale") if span.parent == run.id]
            assert sum(span.facts["changed"] for span in batches) == run.facts["changed"] == 1
            assert run.facts["slot"] == tick.facts["slot"]
            assert run.facts["lateness_seconds"] >= 0
            assert (run.facts["attempt"], attempt.facts["attempt"], attempt.facts["events"]) == (1, 1, 1)
            logged = {record["msg"]: record.get("trace_id") for record in worker.records if record.get("changed")}
            assert logged["sweep done"] == run.trace.hex()
            ready = next(record for record in worker.records if record["msg"] == "worker ready")
            assert "trace_id" not in ready
            assert worker.end() == told.end() == 0
    assert not any(span.failed or span.events for span in collector.spans)


def test_what_fails_has_a_class_an_sqlstate_and_a_reason(
    env: dict[str, str], tmp_path: Path, sql: Connection[Any]
) -> None:
    sql.execute(f"ALTER TABLE agents ADD CONSTRAINT own CHECK (status <> 'stale' OR name = '{CANARY}')")
    insert_agent(sql, "silent", last_seen_at=FIXED)
    with Collector() as collector, Receiver(Reply(503, CANARY.encode())) as receiver:
        env |= collector.url_of_everything | {"SB_NOTIFICATION_WEBHOOK_URL": f"{receiver.url}/{CANARY}"}
        with Process(WORKER, env, tmp_path / "w.log"), Process(SCHEDULER, env, tmp_path / "s.log"):
            attempt: Sent = eventually(lambda: next(iter(collector.named("attempt", "webhook")), None))
            batch: Sent = eventually(
                lambda: next((s for s in collector.named("batch", "agents-stale") if s.failed), None)
            )
    assert attempt.failed
    assert (attempt.facts["error.type"], attempt.facts["reason"]) == ("SinkUnavailable", "server_error")
    assert (batch.facts["error.type"], batch.facts["db.response.status_code"]) == ("CheckViolation", "23514")
    assert not any(span.events for span in collector.spans)
    assert CANARY.encode() not in b"".join(map(body, collector.seen))


def test_a_poll_has_its_endpoint_and_how_it_ended(env: dict[str, str], tmp_path: Path, sql: Connection[Any]) -> None:
    with Collector() as collector, Receiver(Argo({"one": document("one")})) as argo:
        endpoint = insert_endpoint(sql, "argo", argo.url)
        insert_observations(sql, endpoint, "one", "none")
        env |= {**collector.url_of_everything, **ON, "SB_GITOPS_POLL_INTERVAL": "1s"}
        with Process(SWEEPER, env, tmp_path / "w.log"), Process(SCHEDULER, env, tmp_path / "s.log"):
            polls: list[Sent] = eventually(lambda: (spans := collector.named("poll"))[1:] and spans)
            run: Sent = eventually(lambda: collector.parent(polls[0]))
    assert run.name == "run gitops-poller"
    assert {span.facts["endpoint"] for span in polls} == {endpoint}
    assert {span.facts["outcome"] for span in polls} <= {"ok", "partial", "not_found", "forbidden"}
    everything = b"".join(map(body, collector.seen))
    assert TOKEN.encode() not in everything
    assert argo.url.encode() not in everything


def test_a_dead_collector_costs_one_line_and_no_stop(env: dict[str, str], tmp_path: Path, sql: Connection[Any]) -> None:
    env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    # That port refuses at once: this is what a stall would have to last. It is asked twice; the third time had to wait.
    env["OTEL_EXPORTER_OTLP_TIMEOUT"] = "2"
    with Process(WORKER, env, tmp_path / "w.log") as worker, Process(SCHEDULER, env, tmp_path / "s.log") as scheduler:
        worker.ready()
        eventually(lambda: column(sql, SUCCEEDED)[0] > 20)
        (line,) = eventually(lambda: [record for record in worker.records if "traces" in record["msg"]])
        assert (line["level"], line["reason"]) == ("WARN", "ConnectionError")
        assert worker.end() == scheduler.end() == 0
        assert "Traceback" not in worker.text + scheduler.text


def test_a_collector_that_hangs_holds_up_neither_sweeps_nor_a_stop(
    env: dict[str, str], tmp_path: Path, sql: Connection[Any]
) -> None:
    with Rude(_hang) as hung:
        env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": hung.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        env |= {"OTEL_EXPORTER_OTLP_TIMEOUT": "100", "SB_WORKER_SHUTDOWN_GRACE": "20s"}
        with (
            Process(WORKER, env, tmp_path / "w.log") as worker,
            Process(SCHEDULER, env, tmp_path / "s.log") as scheduler,
        ):
            worker.ready()
            eventually(lambda: hung.connections)
            eventually(lambda: column(sql, SUCCEEDED)[0] > 20)
            assert worker.end() == scheduler.end() == 0
            assert "not ended within the grace period" not in worker.text


def test_each_process_of_a_replica_sends_its_own(env: dict[str, str], tmp_path: Path) -> None:
    with Collector() as collector, reserved_port() as port:
        env |= {**collector.url_of_everything, "SB_NOTIFICATION_LOCAL_ADDR": f"127.0.0.1:{port}"}
        with Process(("sb-worker", "run"), env, tmp_path / "r.log") as replica:
            replica.ready()
            eventually(lambda: {span.role for span in collector.spans} == {"scheduler", "worker", "notifier"})
            assert replica.end() == 0
    ids = [span.id for span in collector.spans]
    assert len(set(ids)) == len(ids)


def test_a_collector_that_comes_back_gets_the_spans_of_then(env: dict[str, str], tmp_path: Path) -> None:
    with Collector(Reply(500)) as collector:
        env |= collector.url_of_everything
        with Process(SWEEPER, env, tmp_path / "w.log") as worker, Process(SCHEDULER, env, tmp_path / "s.log"):
            worker.ready()
            eventually(lambda: [record for record in worker.records if record.get("reason") == "500"])
            collector.answer = Reply(200, b"")
            again = eventually(lambda: [r for r in worker.records if r["msg"] == "traces are sent again"])
            assert again[0]["lost"] > 0
