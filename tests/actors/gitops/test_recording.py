"""What is recorded of an answer, of one that is none, and of nobody there; and what is asked for."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
import redis as redis_py
from psycopg import Connection

from actors.gitops_poller import gitops_poller
from app.gitops.documents import MOST_MESSAGE, MOST_RESOURCES
from tests.actors.gitops.looking import ENDPOINTS, OBSERVATIONS, PATH, one
from tests.support import http_server
from tests.support.argocd import (
    AFTER,
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
from tests.support.waiting import HUNG


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
