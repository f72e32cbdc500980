"""What these tests look at."""

from __future__ import annotations

from typing import Any

from psycopg import Connection

from tests.support.rows import rows

OBSERVATIONS = "SELECT * FROM gitops_observations ORDER BY application_name"
ENDPOINTS = "SELECT * FROM argocd_endpoints ORDER BY name"
RUNS = "SELECT * FROM secrets_bridge_worker.sweep_run ORDER BY id"
PATH = "/api/v1/applications/app"


def one(sql: Connection[Any], query: str = OBSERVATIONS) -> dict[str, Any]:
    """Return the only row."""
    (row,) = rows(sql, query)
    return row
