"""Connections to PostgreSQL go silent, with nothing closed: sweeps go on, by whoever is well and by the one cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis as redis_py
from psycopg import Connection

import actors
from app.demo.servers import Redis
from tests.support.processes import QUICK, SCHEDULER, WORKER, Process, environment
from tests.support.proxy import Proxy
from tests.support.rows import rows
from tests.support.waiting import eventually

SWEEPERS = {sweeper.name for sweeper in actors.SWEEPERS} - {"gitops-poller", "gitops-timeout", "sessions-expired"}
SINCE = """
SELECT name, count(*) AS runs FROM secrets_bridge_worker.sweep_run
 WHERE outcome = 'success' AND started_at > %(since)s::text::timestamptz GROUP BY name
"""


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    with Proxy(urlsplit(database).port or 0) as between:
        yield between


def now(sql: Connection[Any]) -> str:
    return str(rows(sql, "SELECT clock_timestamp() AS now")[0]["now"])


def run_since(sql: Connection[Any], since: str) -> set[str]:
    return {row[0] for row in sql.execute(SINCE, {"since": since}).fetchall()}


@pytest.mark.parametrize("others", [0, 1], ids=["alone", "beside one that is well"])
def test_sweeps_go_on_when_connections_go_silent(  # noqa: PLR0913, PLR0917 - fixtures
    proxy: Proxy,
    database: str,
    redis: redis_py.Redis,
    redis_server: Redis,
    sql: Connection[Any],
    tmp_path: Path,
    others: int,
) -> None:
    direct = environment(database, redis_server.url(), **QUICK)
    through = {**direct, "DATABASE_URL": database.replace(f":{urlsplit(database).port}/", f":{proxy.port}/")}
    worker = (*WORKER, "--queues", "sweeps")
    with Process(worker, through, tmp_path / "cut.log") as cut, Process(SCHEDULER, direct, tmp_path / "scheduler.log"):
        cut.ready()
        with Process(worker, direct, tmp_path / "well.log") if others else cut as well:
            well.ready()
            eventually(lambda: run_since(sql, "epoch") == SWEEPERS)

            eventually(proxy.silence)
            silenced = now(sql)

            eventually(lambda: run_since(sql, silenced) == SWEEPERS)
            eventually(lambda: cut.metric("worker_postgres_connections_lost_total", reason="silent"))
            accepted = proxy.accepted
            eventually(lambda: cut.get("/readyz").status_code == 200)
            later = now(sql)
            eventually(lambda: run_since(sql, later) == SWEEPERS)
            assert proxy.accepted >= accepted > 0
            lost = [record for record in cut.records if record["msg"] == "PostgreSQL connection given up"]
            assert {record["reason"] for record in lost} == {"silent"}
