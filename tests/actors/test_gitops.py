"""The GitOps sweepers on the api's tables, against a server that answers as ArgoCD does."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from prometheus_client import REGISTRY
from psycopg import Connection
from psycopg_pool import ConnectionPool
from pydantic import SecretStr

from actors.gitops_poller import GitopsPoller, gitops_poller
from actors.gitops_timeout import GIVE_UP, GitopsTimeout, gitops_timeout
from app.core.errors import ConfigError, LeaseLost
from app.core.events import Severity
from app.gitops.documents import MOST_MESSAGE, MOST_RESOURCES
from tests.support import http_server
from tests.support.argocd import (
    AFTER,
    BEFORE,
    CREATED,
    TOKEN,
    Argo,
    again,
    document,
    error,
    insert_endpoint,
    insert_observations,
    reply,
    settings,
)
from tests.support.http_server import Receiver, Reply, Rude
from tests.support.replica import Replica
from tests.support.rows import column, rows
from tests.support.tls import Authority
from tests.support.waiting import HUNG, eventually

OBSERVATIONS = "SELECT * FROM gitops_observations ORDER BY application_name"
ENDPOINTS = "SELECT * FROM argocd_endpoints ORDER BY name"
RUNS = "SELECT * FROM secrets_bridge_worker.sweep_run ORDER BY id"
PATH = "/api/v1/applications/app"


@pytest.fixture
def argo() -> Iterator[tuple[Argo, Receiver]]:
    """Return a stand-in and the server that it answers on."""
    stand_in = Argo()
    with Receiver(stand_in) as server:
        yield stand_in, server


def one(sql: Connection[Any], query: str = OBSERVATIONS) -> dict[str, Any]:
    (row,) = rows(sql, query)
    return row


# ------------------------------------------------------------------------------------------------- what is decided

OLD, NEW = {"reconciledAt": BEFORE}, {"reconciledAt": AFTER}
OP_OLD = {"startedAt": BEFORE, "finishedAt": BEFORE}
OP_NEW = {"startedAt": BEFORE, "finishedAt": AFTER}
HEALTHS = ("Progressing", "Degraded", "Suspended", "Missing", "Unknown", "")

#: health, sync, more of the status; the state with the rule of freshness, and without.
DECISIONS: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("Healthy", "Synced", NEW, "applied", "applied"),
    ("Healthy", "Synced", OLD, "active", "applied"),
    ("Healthy", "Synced", {}, "applied", "applied"),
    ("Healthy", "Synced", {"reconciledAt": "2026-11-23T09:00:00Z"}, "applied", "applied"),
    ("Healthy", "Synced", {"reconciledAt": "2026-11-23T08:59:58Z"}, "applied", "applied"),
    ("Healthy", "Synced", {"reconciledAt": "2026-11-23T08:59:57Z"}, "active", "applied"),
    ("Healthy", "Synced", {**NEW, "operationState": {"phase": "Succeeded", **OP_OLD}}, "applied", "applied"),
    ("Healthy", "Synced", {"operationState": {"phase": "Succeeded", **OP_OLD}}, "active", "applied"),
    ("Healthy", "Synced", {"operationState": {"phase": "Succeeded", **OP_NEW}}, "applied", "applied"),
    ("Healthy", "Synced", {**OLD, "operationState": {"phase": "Succeeded", **OP_NEW}}, "active", "applied"),
    ("Healthy", "Synced", {**NEW, "operationState": {"phase": "Running"}}, "active", "active"),
    ("Healthy", "Synced", {**NEW, "operationState": {"phase": "Terminating"}}, "active", "active"),
    *((health, "Synced", NEW, "active", "active") for health in HEALTHS),
    ("Healthy", "OutOfSync", NEW, "active", "active"),
    ("Healthy", "Unknown", NEW, "active", "active"),
    ("Healthy", "", NEW, "active", "active"),
    *(
        (health, "Synced", {**NEW, "operationState": {"phase": phase, **OP_NEW}}, "failed", "failed")
        for health in ("Healthy", "Degraded")
        for phase in ("Failed", "Error")
    ),
    ("Degraded", "OutOfSync", {"operationState": {"phase": "Failed"}}, "failed", "failed"),
    ("Degraded", "Synced", {**NEW, "operationState": {"phase": "Failed", **OP_OLD}}, "active", "failed"),
    ("Healthy", "Synced", {**NEW, "operationState": {"phase": "Error", **OP_OLD}}, "applied", "failed"),
    ("Healthy", "Synced", {**OLD, "operationState": {"phase": "Error", **OP_OLD}}, "active", "failed"),
    ("Missing", "Synced", {"operationState": {"phase": "Error", "startedAt": AFTER}}, "failed", "failed"),
    ("Missing", "Synced", {"operationState": {"phase": "Error", "startedAt": BEFORE}}, "active", "failed"),
]


@pytest.mark.parametrize("fresh", [True, False], ids=["by fresh evidence", "as the Go worker"])
def test_an_application_decides_its_observation(
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any], fresh: bool
) -> None:
    stand_in, server = argo
    endpoint = insert_endpoint(sql, "main", server.url)
    expected = {}
    for number, (health, sync, status, strict, loose) in enumerate(DECISIONS):
        name = f"app-{number:02}"
        stand_in.applications[name] = document(name, health, sync, **status)
        insert_observations(sql, endpoint, name)
        expected[name] = strict if fresh else loose

    replica.run(gitops_poller, settings(freshness=fresh))

    found = rows(sql, OBSERVATIONS)
    assert {row["application_name"]: row["polling_state"] for row in found} == expected
    assert {(row["terminal_at"] is None, row["polling_state"] == "active") for row in found} == {
        (True, True),
        (False, False),
    }
    states = list(expected.values())
    (event,) = replica.events
    assert (event.title, event.severity) == ("gitops observations polled", Severity.WARN)
    assert dict(event.metadata) == {
        "succeeded": len(DECISIONS),
        "failed": 0,  # of the polls, as the Go worker means it
        "applied": states.count("applied"),
        "observations_failed": states.count("failed"),
    }


def test_an_operation_that_is_asked_for_and_not_begun_keeps_an_observation_open(
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any]
) -> None:
    stand_in, server = argo
    stand_in.applications["app"] = {**document("app", reconciledAt=AFTER), "operation": {"sync": {}}}
    insert_observations(sql, insert_endpoint(sql, "main", server.url), "app")
    replica.run(gitops_poller, settings())
    assert one(sql)["polling_state"] == "active"


# ------------------------------------------------------------------------------------------------ what is recorded


def test_the_snapshot_has_the_apis_shape_and_nothing_else(
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any]
) -> None:
    stand_in, server = argo
    operation = {"phase": "Running", "message": "canary-message", "startedAt": AFTER}
    stand_in.applications["app"] = document("app", "Progressing", "OutOfSync", operationState=operation)
    insert_observations(sql, insert_endpoint(sql, "main", server.url + "/argo/"), "app")

    replica.run(gitops_poller, settings())

    row = one(sql)
    assert row["observed_state"] == {
        "health_status": "Progressing",
        "health_message": "",
        "sync_status": "OutOfSync",
        "sync_revision": "6d2f1c",
        "operation_phase": "Running",
        "resources": [
            {"kind": "Secret", "name": "db", "namespace": "apps", "health": "", "message": ""},
            {"kind": "Deployment", "name": "api", "namespace": "apps", "health": "Degraded", "message": "0 of 2 ready"},
        ],
        "resource_count": 2,
    }
    assert (row["polling_state"], row["polls_count"], row["last_error"]) == ("active", 1, None)
    assert [(seen.method, seen.path) for seen in server.seen] == [
        ("GET", "/argo/api/v1/applications/app"),
        ("GET", "/argo/api/v1/applications/app/resource-tree"),
    ]
    assert replica.events == []


def test_a_large_tree_is_bounded_and_odd_texts_are_made_fit(
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any]
) -> None:
    stand_in, server = argo
    nodes = [{"kind": "Pod", "name": f"p{number}", "health": {"status": "Healthy"}} for number in range(2000)]
    nodes.append({"kind": "Pod", "name": "a\x00b\ud800", "health": {"status": "Degraded", "message": "x" * 9999}})
    stand_in.trees["app"] = {"nodes": nodes}
    revisions = {"status": "Synced", "revisions": ["a1", "b2"]}
    stand_in.applications["app"] = {"metadata": {"name": "app"}, "status": {"sync": revisions}}
    insert_observations(sql, insert_endpoint(sql, "main", server.url), "app")
    replica.run(gitops_poller, settings())
    state = one(sql)["observed_state"]
    assert (state["resource_count"], len(state["resources"])) == (2001, MOST_RESOURCES)
    assert state["resources"][0]["name"] == "ab?"
    assert len(state["resources"][0]["message"]) == MOST_MESSAGE
    assert state["sync_revision"] == "a1, b2"


def failing(sql: Connection[Any], replica: Replica, url: str, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    insert_observations(sql, insert_endpoint(sql, "main", url), "app", observed_state='{"kept": 1}')
    replica.run(gitops_poller, settings(**fields))
    row = one(sql)
    assert (row["polling_state"], row["polls_count"], row["terminal_at"]) == ("active", 1, None)
    assert row["observed_state"] == {"kept": 1}
    assert TOKEN not in json.dumps([repr(row), repr(rows(sql, ENDPOINTS))])
    return row, one(sql, ENDPOINTS)


#: the answer to the application's request; the error, and whether the endpoint counts as unhealthy.
ANSWERS: list[tuple[Reply, str, bool]] = [
    (error(400, 3, "bad"), "HTTP 400", True),
    (error(401, 16, "invalid session: canary"), "unauthorized", True),
    (error(403, 7, "permission denied"), "forbidden", False),
    (error(404, 5, "not found"), "not found", False),
    (error(429, 8, "slow down"), "HTTP 429", True),
    (error(500, 2, "canary"), "HTTP 500", True),
    (Reply(502, b"<html>"), "HTTP 502", True),
    (error(503, 14, "away"), "HTTP 503", True),
    (error(504, 4, "late"), "HTTP 504", True),
    (Reply(307, b"", {"Location": "https://127.0.0.1:1/"}), "HTTP 307", True),
    (Reply(302, b"", {"Location": "/login"}), "HTTP 302", True),
    (
        Reply(200, b"<!doctype html>", {"Content-Type": "text/html; charset=utf-8"}),
        "decode error: not JSON; is the base URL ArgoCD's?",
        True,
    ),
    (Reply(200, b"{", {"Content-Type": "application/json"}), "decode error: not JSON", False),
    (reply([]), "decode error: the answer is not an object", False),
    (reply({}), "decode error: metadata.name is not the application's", False),
    (reply(document("another")), "decode error: metadata.name is not the application's", False),
    (reply({"metadata": {"name": 5}}), "decode error: name is not a text", False),
    (reply({**document("app"), "status": "canary"}), "decode error: status is not an object", False),
    (reply(document("app", reconciledAt="canary")), "decode error: reconciledAt is not a time", False),
    (
        reply(document("app", reconciledAt="2026-11-23")),
        "decode error: reconciledAt is not a time with its zone",
        False,
    ),
    (
        reply({"metadata": {"name": "app"}, "status": {"health": {"status": 1}}}),
        "decode error: status is not a text",
        False,
    ),
]


@pytest.mark.parametrize(("answer", "text", "unhealthy"), ANSWERS, ids=[f"{a.status} {t[:50]}" for a, t, _ in ANSWERS])
def test_an_answer_that_is_none_keeps_the_snapshot_and_says_why(  # noqa: PLR0913, PLR0917
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any], answer: Reply, text: str, unhealthy: bool
) -> None:
    stand_in, server = argo
    stand_in.applications["app"] = answer
    row, endpoint = failing(sql, replica, server.url)
    assert row["last_error"] == f"argocd fetch: argocd: {PATH}: {text}"
    assert endpoint["last_health_error"] == (f"argocd: {PATH}: {text}" if unhealthy else None)
    assert (endpoint["last_health_at"] is not None) == unhealthy
    assert [event.metadata.get("endpoints_unhealthy") for event in replica.events] == ([1] if unhealthy else [])
    assert len(server.seen) == 1
    assert "canary" not in repr(replica.events)


@pytest.mark.parametrize(
    ("treat", "seconds", "text"),
    [
        (http_server.silence, 0.3, "no answer within 0.3s"),
        (http_server.header_drip, 0.3, "no answer within 0.3s"),
        (http_server.body_drip, 0.3, "no answer within 0.3s"),
        (http_server.nonsense, HUNG, "cannot be reached (protocol)"),
        (http_server.reset, HUNG, "cannot be reached (connect)"),
    ],
)
def test_a_server_that_stalls_or_breaks_off_is_told(
    replica: Replica, sql: Connection[Any], treat: Any, seconds: float, text: str
) -> None:
    with Rude(treat) as server:
        row, endpoint = failing(sql, replica, server.url, timeout=timedelta(seconds=seconds))
    assert row["last_error"] == f"argocd fetch: argocd: {PATH}: {text}"
    assert endpoint["last_health_error"] == f"argocd: {PATH}: {text}"


def test_an_answer_without_end_is_cut(replica: Replica, sql: Connection[Any]) -> None:
    with Rude(http_server.endless) as server:
        row, _ = failing(sql, replica, server.url)
    assert row["last_error"].endswith("decode error: not JSON; is the base URL ArgoCD's?") or row[
        "last_error"
    ].endswith("the answer is longer than 4 MiB")


def test_nobody_there_is_told(replica: Replica, sql: Connection[Any]) -> None:
    row, _ = failing(sql, replica, "http://127.0.0.1:1")
    assert row["last_error"] == f"argocd fetch: argocd: {PATH}: cannot be reached (connect)"


@pytest.mark.parametrize(
    "url", ["ftp://h", "127.0.0.1", "https://u:canary@h", "https://h?x=canary", "https://h#x", "http://", "https://[h"]
)
def test_an_address_that_cannot_be_asked_is_told(replica: Replica, sql: Connection[Any], url: str) -> None:
    row, endpoint = failing(sql, replica, url)
    assert row["last_error"] == "build argocd client: the base URL is not https://host[:port][/path]"
    assert endpoint["last_health_error"] is None


def test_a_token_that_does_not_open_is_told_and_leaves_the_endpoint_alone(
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any]
) -> None:
    _, server = argo
    endpoint = insert_endpoint(sql, "main", server.url, token_kms_key_id="local:another")
    insert_observations(sql, endpoint, "app", "bpp")
    replica.run(gitops_poller, settings())
    told = column(sql, "SELECT last_error FROM gitops_observations")
    assert len(told) == 2
    assert all(text.startswith("unwrap token: wrapped by key local:another, this worker has local:") for text in told)
    assert one(sql, ENDPOINTS)["last_health_at"] is None
    assert server.seen == []


def test_a_tree_that_fails_leaves_what_the_application_said(
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any]
) -> None:
    stand_in, server = argo
    stand_in.applications |= {"app": document("app", reconciledAt=AFTER), "bpp": document("bpp", "Degraded")}
    stand_in.trees |= {"app": error(500, 2, "no"), "bpp": error(500, 2, "no")}
    endpoint = insert_endpoint(sql, "main", server.url)
    insert_observations(sql, endpoint, "app")
    insert_observations(sql, endpoint, "bpp", observed_state='{"resources": [{"kind": "old"}], "resource_count": 1}')
    replica.run(gitops_poller, settings())
    first, second = rows(sql, OBSERVATIONS)
    assert first["polling_state"] == "applied"
    assert first["last_error"] == f"argocd fetch: argocd: {PATH}/resource-tree: HTTP 500"
    assert (first["observed_state"]["health_status"], first["observed_state"]["resources"]) == ("Healthy", [])
    assert second["observed_state"]["health_status"] == "Degraded"
    assert second["observed_state"]["resources"] == [{"kind": "old"}]


def test_a_missing_application_is_a_clear_404_when_its_project_is_known(
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any]
) -> None:
    stand_in, server = argo
    stand_in.applications["there"] = document("there", "Progressing")
    endpoint = insert_endpoint(sql, "main", server.url)
    connection = sql.execute(
        "INSERT INTO provider_connections (name, type, auth_method) VALUES ('p', 'vault', 'token') RETURNING id"
    ).fetchone()
    assert connection is not None
    for name, project, deleted in [("gone", "team", None), ("there", "wrong", None), ("old", "team", "2026-01-01")]:
        sql.execute(
            "INSERT INTO gitops_app_mappings (provider_connection_id, argocd_endpoint_id, application_name,"
            " project_name, deleted_at) VALUES (%s, %s, %s, %s, %s)",
            [connection[0], endpoint, name, project, deleted],
        )
    insert_observations(sql, endpoint, "gone", "old", "there", application_namespace="apps")
    replica.run(gitops_poller, settings(concurrency=1))
    told = {row["application_name"]: row["last_error"] for row in rows(sql, OBSERVATIONS)}
    assert told == {
        "gone": "argocd fetch: argocd: /api/v1/applications/gone: not found",
        "old": "argocd fetch: argocd: /api/v1/applications/old: forbidden",
        "there": None,
    }
    asked = sorted(seen.path for seen in server.seen)
    assert asked == [
        "/api/v1/applications/gone",
        "/api/v1/applications/gone?project=team",
        "/api/v1/applications/old",
        "/api/v1/applications/there",
        "/api/v1/applications/there/resource-tree",
    ]
    again(sql)
    server.seen.clear()
    replica.run(gitops_poller, settings(app_namespace=True))
    assert "/api/v1/applications/old?appNamespace=apps" in [seen.path for seen in server.seen]


def test_only_two_paths_are_asked_and_the_token_is_in_one_header_only(
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    stand_in, server = argo
    names = ["app", "a b/c?d#e%", "ключ", "a$&+=:@;,"]
    stand_in.applications |= {name: document(name, "Progressing") for name in names}
    insert_observations(sql, insert_endpoint(sql, "main", server.url), *names, "..")
    replica.run(gitops_poller, settings())
    assert {seen.method for seen in server.seen} == {"GET"}
    assert sorted(seen.path for seen in server.seen if not seen.path.endswith("/resource-tree")) == sorted(
        [
            PATH,
            "/api/v1/applications/a%20b%2Fc%3Fd%23e%25",
            "/api/v1/applications/%D0%BA%D0%BB%D1%8E%D1%87",
            "/api/v1/applications/a$&+=:@%3B%2C",
        ]
    )
    for seen in server.seen:
        carrying = [name for name, value in seen.headers.items() if TOKEN in value]
        assert carrying == ["authorization"]
        assert seen.body == b""
        assert not {"cookie", "referer"} & set(seen.headers)
    dots = next(row for row in rows(sql, OBSERVATIONS) if row["application_name"] == "..")
    assert dots["last_error"] == "argocd: not an application's name"
    kept = [
        repr(row) for table in ("sweep_run", "sweep_state") for row in rows(sql, f"TABLE secrets_bridge_worker.{table}")
    ]
    assert TOKEN not in "".join(kept) + repr(rows(sql, OBSERVATIONS)) + repr(rows(sql, ENDPOINTS))
    assert not [key for key in redis.keys("*") if TOKEN.encode() in (redis.dump(key) or b"")]


# -------------------------------------------------------------------------------------------------------------- TLS


def test_tls_trusts_the_endpoints_own_authority_alone(replica: Replica, sql: Connection[Any], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    stand_in = Argo({"app": document("app", reconciledAt=AFTER)})
    pem = authority.file.read_text()
    with (
        Receiver(stand_in, tls=authority.server()) as by_address,
        Receiver(stand_in, tls=authority.server("argocd.example")) as by_name,
    ):
        cases = {
            "1 own": (by_address.url, {"tls_ca_pem": pem}),
            "2 named": (by_name.url, {"tls_ca_pem": pem, "tls_server_name": "argocd.example"}),
            "3 unnamed": (by_name.url, {"tls_ca_pem": pem}),
            "4 system": (by_address.url, {}),
            "5 no certificate": (by_address.url, {"tls_ca_pem": "canary"}),
        }
        for name, (url, columns) in cases.items():
            insert_observations(sql, insert_endpoint(sql, name, url, **columns), "app")
        replica.run(gitops_poller, settings())
    query = (
        "SELECT o.polling_state, o.last_error FROM gitops_observations o JOIN argocd_endpoints e"
        " ON e.id = o.argocd_endpoint_id ORDER BY e.name"
    )
    tls = f"argocd fetch: argocd: {PATH}: cannot be reached (tls)"
    assert [(row["polling_state"], row["last_error"]) for row in rows(sql, query)] == [
        ("applied", None),
        ("applied", None),
        ("active", tls),
        ("active", tls),
        ("active", "build argocd client: tls_ca_pem holds no usable certificate"),
    ]


# ---------------------------------------------------------------------------------------------------------- endpoints


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
    stand_in.applications["bad"] = document("bad", "Degraded", operationState={"phase": "Failed", **OP_NEW})
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


def test_the_rest_of_a_dead_endpoints_rows_fail_at_once(replica: Replica, sql: Connection[Any]) -> None:
    with Rude(http_server.silence) as server:
        names = [f"app-{number:03}" for number in range(100)]
        insert_observations(sql, insert_endpoint(sql, "main", server.url), *names)
        replica.run(gitops_poller, settings(concurrency=4, timeout=timedelta(seconds=1)))
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


# ----------------------------------------------------------------------------------------------------- one result each


def test_each_observation_is_polled_once_a_slot(
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any]
) -> None:
    stand_in, server = argo
    names = [f"app-{number:02}" for number in range(45)]
    stand_in.applications |= {name: document(name, "Progressing") for name in names}
    insert_observations(sql, insert_endpoint(sql, "main", server.url), *names)
    hour = settings(interval=timedelta(hours=1))
    replica.run(gitops_poller, hour)
    assert len(server.seen) == 90
    # A second run of the same slot, as after a failure, finds nothing to claim.
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = 'epoch'")
    sql.execute("DELETE FROM secrets_bridge_worker.sweep_run")
    replica.run(gitops_poller, hour)
    assert len(server.seen) == 90
    assert set(column(sql, "SELECT polls_count FROM gitops_observations")) == {1}


@pytest.mark.parametrize(
    "meanwhile",
    [
        "UPDATE gitops_observations SET polling_state = 'applied_unverified', terminal_at = now()",
        "UPDATE gitops_observations SET polls_count = polls_count + 1, last_error = 'newer'",
        "UPDATE gitops_observations SET last_polled_at = now() + interval '1 s'",
    ],
    ids=["timed out", "polled by another", "claimed by another"],
)
def test_a_result_is_not_written_over_a_row_that_has_moved(
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any], meanwhile: str
) -> None:
    stand_in, server = argo

    def move(_name: str) -> float:
        stand_in.pause = lambda _name: 0.0
        sql.execute(meanwhile.encode())
        return 0.0

    stand_in.applications["app"] = document("app", reconciledAt=AFTER)
    stand_in.pause = move
    insert_observations(sql, insert_endpoint(sql, "main", server.url), "app")
    sweep = replica.run(gitops_poller, settings())
    row = one(sql)
    assert dict(sweep.counts)["overtaken"] == 1
    assert row["observed_state"] == {}
    assert row["polling_state"] in ("applied_unverified", "active")
    assert row["last_error"] in (None, "newer")


def test_terminal_rows_are_never_claimed(argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any]) -> None:
    _, server = argo
    endpoint = insert_endpoint(sql, "main", server.url)
    for state in ("applied", "failed", "applied_unverified"):
        insert_observations(sql, endpoint, f"app-{state}", polling_state=state, terminal_at=CREATED)
    before = rows(sql, OBSERVATIONS)
    replica.run(gitops_poller, settings())
    assert rows(sql, OBSERVATIONS) == before
    assert server.seen == []


def test_a_lock_lost_in_the_middle_of_a_request_ends_the_run_unwritten(
    argo: tuple[Argo, Receiver], database: str, redis: redis_py.Redis, sql: Connection[Any]
) -> None:
    stand_in, server = argo
    stand_in.applications |= {"app": document("app", reconciledAt=AFTER), "bpp": document("bpp", "Progressing")}
    started = threading.Event()

    def slow(name: str) -> float:
        started.set()
        return HUNG if name == "app" else 0.0

    stand_in.pause = slow
    insert_observations(sql, insert_endpoint(sql, "main", server.url), "app", "bpp")
    with ConnectionPool[Connection[Any]](database, kwargs={"autocommit": True}, min_size=0, max_size=2) as pool:
        replica = Replica(pool, redis, lease=timedelta(seconds=6))

        def forget() -> None:
            started.wait()
            redis.flushall()

        threading.Thread(target=forget, daemon=True).start()
        with pytest.raises(LeaseLost):
            replica.run(gitops_poller, settings(timeout=timedelta(seconds=2 * HUNG)))
        eventually(lambda: stand_in.under_way == 1)  # it has not waited for the answer
        stand_in._over.set()
        first = next(row for row in rows(sql, OBSERVATIONS) if row["application_name"] == "app")
        assert (first["polling_state"], first["polls_count"]) == ("active", 0)

        # Its successor closes the run, in a slot of its own, and polls what is due again.
        stand_in.pause = lambda _name: 0.0
        sql.execute("UPDATE gitops_observations SET last_polled_at = last_polled_at - interval '1 hour'")
        replica.run(gitops_poller, settings(interval=timedelta(seconds=1)))
    assert [run["outcome"] for run in rows(sql, RUNS)] == ["interrupted", "success"]
    assert {row["polls_count"] >= 1 for row in rows(sql, OBSERVATIONS)} == {True}


def test_a_process_that_ends_lets_go_of_what_hangs(
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any]
) -> None:
    stand_in, server = argo
    stand_in.applications |= {"app": document("app"), "bpp": document("bpp", "Progressing")}

    def polled() -> float:
        return REGISTRY.get_sample_value("worker_gitops_polls_total", {"outcome": "ok"}) or 0.0

    before = polled()
    stand_in.pause = lambda name: HUNG if name == "app" else 0.0
    replica.runner.stopping = lambda: polled() > before and stand_in.under_way == 1
    insert_observations(sql, insert_endpoint(sql, "main", server.url), "app", "bpp")
    replica.run(gitops_poller, settings(timeout=timedelta(seconds=2 * HUNG)))
    assert stand_in.under_way == 1  # it has not waited for the answer
    stand_in._over.set()
    first, second = rows(sql, OBSERVATIONS)
    assert (first["polls_count"], second["polls_count"]) == (0, 1)
    assert rows(sql, RUNS)[0]["handed_over"]


def test_an_idle_run_asks_for_no_token(replica: Replica, sql: Connection[Any]) -> None:
    insert_endpoint(sql, "main", "http://127.0.0.1:1")
    sweep = replica.run(gitops_poller, settings())
    assert sweep.changed == 0
    assert rows(sql, RUNS)[0]["batches"] == 1
    assert replica.events == []


# ------------------------------------------------------------------------------------------------------------ timeout


def test_what_has_timed_out_becomes_unverified_and_the_rest_is_kept(replica: Replica, sql: Connection[Any]) -> None:
    endpoint = insert_endpoint(sql, "main", "http://127.0.0.1:1")
    second = timedelta(seconds=1)
    now = datetime.now(UTC)
    for name, state, timeout in [
        ("late queued", "queued", now - second),
        ("late active", "active", now - second),
        ("early", "active", now + 60 * second),
        ("never", "active", None),
        ("applied", "applied", now - second),
        ("failed", "failed", now - second),
    ]:
        insert_observations(sql, endpoint, name, polling_state=state, timeout_at=timeout)
    sweep = replica.run(gitops_timeout, GitopsTimeout(gitops=True))
    assert sweep.changed == 2
    assert {row["application_name"]: row["polling_state"] for row in rows(sql, OBSERVATIONS)} == {
        "late queued": "applied_unverified",
        "late active": "applied_unverified",
        "early": "active",
        "never": "active",
        "applied": "applied",
        "failed": "failed",
    }
    assert column(sql, "SELECT count(*) FROM gitops_observations WHERE terminal_at IS NOT NULL") == [2]
    (event,) = replica.events
    assert (event.severity, event.title, event.detail, dict(event.metadata)) == (
        Severity.WARN,
        "gitops observations timed out",
        "flipped 2 row(s) to applied_unverified",
        {"flipped": 2},
    )
    again(sql)
    assert replica.run(gitops_timeout, GitopsTimeout(gitops=True)).changed == 0
    assert len(replica.events) == 1


def test_an_observation_at_its_very_time_is_not_late(replica: Replica, sql: Connection[Any]) -> None:
    endpoint = insert_endpoint(sql, "main", "http://127.0.0.1:1")
    insert_observations(sql, endpoint, "app")
    with replica.runner.pool.connection() as connection, connection.transaction():
        cursor = connection.cursor()
        for cutoff, found in ((CREATED, 0), (CREATED + timedelta(microseconds=1), 1)):
            cursor.execute("UPDATE gitops_observations SET timeout_at = %s, polling_state = 'active'", [CREATED])
            given = {"after": "-infinity", "skip": 0, "cutoff": cutoff, "limit": 10, "passing": False}
            row = cursor.execute(GIVE_UP.gentle, given).fetchone()
            assert row is not None
            assert row[0] == found


def test_ten_thousand_that_have_timed_out_are_done_in_one_run(replica: Replica, sql: Connection[Any]) -> None:
    endpoint = insert_endpoint(sql, "main", "http://127.0.0.1:1")
    insert_observations(sql, endpoint, "app", timeout_at=CREATED)
    sql.execute(
        "INSERT INTO gitops_observations (request_id, argocd_endpoint_id, application_name, polling_state, timeout_at)"
        " SELECT request_id, argocd_endpoint_id, 'app-' || n, 'active', timeout_at - (n / 3) * interval '1 s'"
        " FROM gitops_observations, generate_series(1, 9999) AS n"
    )
    sweep = replica.run(gitops_timeout, GitopsTimeout(gitops=True))
    assert sweep.changed == 10_000
    assert column(sql, "SELECT DISTINCT polling_state FROM gitops_observations") == ["applied_unverified"]
    (run,) = rows(sql, RUNS)
    assert (run["outcome"], run["handed_over"], run["batches"] > 2) == ("success", False, True)


# ------------------------------------------------------------------------------------------------------- key services


def test_tokens_wrapped_by_vault_are_opened_once_a_run(
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any], tmp_path: Path
) -> None:
    """The whole way: claim, Vault over TLS with its own authority, ArgoCD, result."""
    stand_in, server = argo
    names = ["app", "bpp", "cpp"]
    stand_in.applications |= {name: document(name, reconciledAt=AFTER) for name in names}
    data_key, nonce = bytes(range(32)), bytes(12)
    sealed = {
        "token_ciphertext": AESGCM(data_key).encrypt(nonce, TOKEN.encode(), None),
        "token_nonce": nonce,
        "token_data_key_ciphertext": b"vault:v1:c2VhbGVk",
        "token_kms_key_id": "vault-transit:transit/sb-wrap",
    }
    insert_observations(sql, insert_endpoint(sql, "main", server.url, **sealed), *names)
    authority = Authority(tmp_path)
    plain = reply({"data": {"plaintext": base64.b64encode(data_key).decode()}})
    with Receiver(plain, tls=authority.server()) as vault:
        own = settings(
            kms_backend="vault-transit",
            vault_address=vault.url,
            vault_token=SecretStr("canary-vault"),
            vault_key="sb-wrap",
            vault_ca=str(authority.file),
        )
        assert list(own.problems(dev=False)) == []
        replica.run(gitops_poller, own)
    assert column(sql, "SELECT DISTINCT polling_state FROM gitops_observations") == ["applied"]
    assert [seen.path for seen in vault.seen] == ["/v1/transit/decrypt/sb-wrap"]
    again(sql)
    sql.execute("UPDATE gitops_observations SET polling_state = 'active', terminal_at = NULL, created_at = now()")
    replica.run(gitops_poller, own)
    assert set(column(sql, "SELECT last_error FROM gitops_observations")) == {
        "unwrap token: vault cannot be reached (connect)"
    }
    assert "canary-vault" not in repr(own) + repr(rows(sql, RUNS))
