"""What an application says decides its observation."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import Connection

from actors.gitops_poller import gitops_poller
from app.core.events import Severity
from tests.actors.gitops.looking import OBSERVATIONS, one
from tests.support.argocd import (
    AFTER,
    BEFORE,
    Argo,
    document,
    insert_endpoint,
    insert_observations,
    settings,
)
from tests.support.http_server import Receiver
from tests.support.replica import Replica
from tests.support.rows import rows

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
