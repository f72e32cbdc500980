"""Endpoints that are off, fall, rest, hang and recover."""

from __future__ import annotations

import socket
import threading
from datetime import timedelta
from typing import Any

import pytest
from psycopg import Connection

from actors.gitops_poller import GitopsPoller, gitops_poller
from app.core.errors import ConfigError
from app.core.events import Severity
from tests.actors.gitops.looking import ENDPOINTS, OBSERVATIONS, one
from tests.support import http_server
from tests.support.argocd import (
    AFTER,
    BEFORE,
    Argo,
    again,
    document,
    error,
    insert_endpoint,
    insert_observations,
    settings,
)
from tests.support.http_server import Receiver, Reply, Rude
from tests.support.replica import Replica
from tests.support.rows import column, rows
from tests.support.waiting import HUNG, LoopClock, eventually


def test_disabled_and_deleted_endpoints_are_not_called_and_their_rows_stay(
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any]
) -> None:
    stand_in, server = argo
    stand_in.applications |= {"a": document("a"), "b": document("b")}
    disabled = insert_endpoint(sql, "disabled", server.url, enabled=False)
    deleted = insert_endpoint(sql, "deleted", server.url, deleted_at="2026-01-01")
    insert_observations(sql, disabled, "a", observed_state='{"kept": 1}')
    insert_observations(sql, deleted, "b", observed_state='{"kept": 1}')
    sweep = replica.run(gitops_poller, settings())
    assert dict(sweep.counts)["endpoint_disabled"] == 2
    for row in rows(sql, OBSERVATIONS):
        assert (row["polling_state"], row["polls_count"], row["last_error"]) == ("queued", 0, "endpoint disabled")
        assert row["observed_state"] == {"kept": 1}
    again(sql)
    assert dict(replica.run(gitops_poller, settings()).counts)["endpoint_disabled"] == 0
    assert server.seen == []
    assert replica.events == []
    sql.execute("UPDATE argocd_endpoints SET enabled = true WHERE name = 'disabled'")
    again(sql)
    replica.run(gitops_poller, settings())
    assert rows(sql, OBSERVATIONS)[0]["last_error"] is None


def test_an_endpoints_fall_and_recovery_are_told_once(
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any]
) -> None:
    stand_in, server = argo
    stand_in.applications["app"] = error(500, 2, "no")
    insert_observations(sql, insert_endpoint(sql, "main", server.url), "app")
    for _ in range(3):
        replica.run(gitops_poller, settings())
        again(sql)
    stand_in.applications["app"] = document("app", "Progressing")
    for _ in range(2):
        replica.run(gitops_poller, settings())
        again(sql)
    told = [(event.severity, dict(event.metadata)) for event in replica.events]
    assert told == [
        (Severity.WARN, {"succeeded": 0, "failed": 1, "endpoints_unhealthy": 1}),
        (Severity.INFO, {"succeeded": 1, "failed": 0, "endpoints_recovered": 1}),
    ]
    assert one(sql, ENDPOINTS)["last_health_error"] is None


def test_polls_that_failed_are_what_the_event_calls_failed(
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any]
) -> None:
    """As the Go worker counts: a rollout that failed is no poll that did."""
    stand_in, server = argo
    stand_in.applications["done"] = document("done", reconciledAt=AFTER)
    stand_in.applications["bad"] = document(
        "bad", "Degraded", operationState={"phase": "Failed", "startedAt": BEFORE, "finishedAt": AFTER}
    )
    stand_in.applications["broken"] = error(500, 2, "no")
    insert_observations(sql, insert_endpoint(sql, "main", server.url), "done", "bad", "broken", "missing")
    replica.run(gitops_poller, settings())
    (event,) = replica.events
    assert {name: event.metadata[name] for name in ("succeeded", "failed", "applied", "observations_failed")} == {
        "succeeded": 2,
        "failed": 2,
        "applied": 1,
        "observations_failed": 1,
    }


def test_a_time_out_of_0_means_what_go_takes_it_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SB_WORKER_GITOPS_HTTP_TIMEOUT", "0")
    read = GitopsPoller.read()
    assert read.deadline == 15
    assert [warning for warning in read.warnings if "SB_WORKER_GITOPS_HTTP_TIMEOUT: 0 means 15s" in warning]
    monkeypatch.setenv("SB_WORKER_GITOPS_HTTP_TIMEOUT", "20s")
    assert (GitopsPoller.read().deadline, GitopsPoller.read().warnings) == (20, ())
    monkeypatch.setenv("SB_WORKER_GITOPS_HTTP_TIMEOUT", "-1s")
    with pytest.raises(ConfigError, match="must not be negative"):
        GitopsPoller.read()


def test_one_applications_403_leaves_the_endpoint_healthy(
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any]
) -> None:
    stand_in, server = argo
    stand_in.applications["bpp"] = document("bpp", "Progressing")
    insert_observations(sql, insert_endpoint(sql, "main", server.url), "app", "bpp")
    replica.run(gitops_poller, settings())
    assert one(sql, ENDPOINTS)["last_health_error"] is None
    assert one(sql, ENDPOINTS)["last_health_at"] is not None
    assert replica.events == []


@pytest.mark.parametrize("status", [429, 503])
def test_an_endpoint_that_wants_to_rest_is_left_alone_as_long_as_it_says(
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any], status: int
) -> None:
    stand_in, server = argo
    names = [f"app-{number:02}" for number in range(30)]
    stand_in.applications |= {name: Reply(status, b"", {"Retry-After": "120"}) for name in names}
    insert_observations(sql, insert_endpoint(sql, "main", server.url), *names)
    replica.run(gitops_poller, settings(concurrency=4))
    assert len(server.seen) <= 4
    before = column(sql, "SELECT polls_count FROM gitops_observations ORDER BY application_name")
    assert set(before) <= {0, 1}
    in_time = "until - interval '120 s' BETWEEN started_at AND finished_at"
    rests = f"SELECT {in_time} FROM secrets_bridge_worker.gitops_rest, secrets_bridge_worker.sweep_run"
    assert column(sql, rests) == [True]
    server.seen.clear()
    again(sql)
    replica.run(gitops_poller, settings())
    assert server.seen == []
    assert column(sql, "SELECT polls_count FROM gitops_observations ORDER BY application_name") == before
    sql.execute("UPDATE secrets_bridge_worker.gitops_rest SET until = now() - interval '1 s'")
    stand_in.applications |= {name: document(name, "Progressing") for name in names}
    again(sql)
    replica.run(gitops_poller, settings())
    after = column(sql, "SELECT polls_count FROM gitops_observations ORDER BY application_name")
    assert after == [count + 1 for count in before]
    assert column(sql, "SELECT count(*) FROM secrets_bridge_worker.gitops_rest") == [0]


def test_the_rest_of_a_dead_endpoints_rows_fail_at_once(
    replica: Replica, sql: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = LoopClock(monkeypatch)

    def silence(connection: socket.socket, over: threading.Event) -> None:
        if server.connections == 4:  # all that may be under way at once are
            clock.pass_by(HUNG)
        http_server.silence(connection, over)

    with Rude(silence) as server:
        names = [f"app-{number:03}" for number in range(100)]
        insert_observations(sql, insert_endpoint(sql, "main", server.url), *names)
        replica.run(gitops_poller, settings(concurrency=4, timeout=timedelta(seconds=HUNG)))
        told = column(sql, "SELECT last_error FROM gitops_observations")
        skipped = [text for text in told if text.startswith("argocd fetch: not asked, the endpoint is down: argocd: ")]
        asked = len(told) - len(skipped)
        assert (len(told), asked) == (100, 4)
        eventually(lambda: server.connections == asked)
        assert set(column(sql, "SELECT polls_count FROM gitops_observations")) == {1}

        # Next time one request finds out whether it is back.
        again(sql)
        replica.run(gitops_poller, settings(concurrency=4, timeout=timedelta(seconds=1)))
        eventually(lambda: server.connections == asked + 1)


def test_one_client_and_one_unwrap_serve_an_endpoint(
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any]
) -> None:
    stand_in, server = argo
    names = [f"app-{number:03}" for number in range(60)]
    stand_in.applications |= {name: document(name, "Progressing") for name in names}
    stand_in.pause = lambda _name: 0.01
    insert_observations(sql, insert_endpoint(sql, "main", server.url), *names)
    own = settings(concurrency=5)
    unwraps: list[str] = []
    inner = own.keys.unwrap

    async def counted(wrapped: bytes, key_id: str, transport: Any) -> bytearray:
        unwraps.append(key_id)
        return await inner(wrapped, key_id, transport)

    own.keys.unwrap = counted  # type: ignore[method-assign]
    replica.run(gitops_poller, own)
    assert len(unwraps) == 1
    assert len(server.seen) == 120
    assert stand_in.most_at_once <= 5
    assert set(column(sql, "SELECT polls_count FROM gitops_observations")) == {1}


def test_a_hanging_endpoint_does_not_hold_up_the_others_past_the_runs_time(
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any]
) -> None:
    """Slot after slot of the others is served, although the run waits for the slow one."""
    stand_in, server = argo
    names = [f"app-{number}" for number in range(6)]
    stand_in.applications |= {name: document(name, "Progressing") for name in names}

    def hang(connection: socket.socket, _over: threading.Event) -> None:
        connection.recv(65536)
        eventually(lambda: len(server.seen) >= 7 * 2 * len(names))  # so six polls of each are over

    replica.runner.budget = timedelta(seconds=3)  # in which no more than four slots begin
    with Rude(hang) as dead:
        insert_observations(sql, insert_endpoint(sql, "dead", dead.url), "app")
        insert_observations(sql, insert_endpoint(sql, "main", server.url), *names)
        replica.run(gitops_poller, settings(interval=timedelta(seconds=1), timeout=timedelta(seconds=2 * HUNG)))
    polls = column(sql, "SELECT polls_count FROM gitops_observations WHERE application_name <> 'app'")
    assert min(polls) > 4
    assert column(sql, "SELECT polls_count FROM gitops_observations WHERE application_name = 'app'") == [1]
