"""A failover of Redis in which the old master stays up as a replica, seen by worker and scheduler processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import redis as redis_py
from psycopg import Connection

from tests.storage.test_redis import server
from tests.support.processes import QUICK, SCHEDULER, WORKER, Process, environment
from tests.support.proxy import Proxy
from tests.support.rights.acl import GrantedRedis
from tests.support.rows import column
from tests.support.waiting import eventually

COUNT = "SELECT count(*) FROM secrets_bridge_worker.sweep_run WHERE outcome = 'success'"


def test_sweeps_go_on_at_the_new_master_and_meanwhile_readiness_says_why_not(
    database: str, sql: Connection[Any], tmp_path: Path
) -> None:
    with (
        server(tmp_path / "old", kind=GrantedRedis) as old,
        server(tmp_path / "new", kind=GrantedRedis) as new,
        Proxy(old.port) as proxy,
        redis_py.Redis(port=old.port) as demoted,
    ):
        env = environment(database, old.url().replace(f":{old.port}/", f":{proxy.port}/"), **QUICK)
        with (
            Process(WORKER, env, tmp_path / "w.log").ready() as worker,
            Process(SCHEDULER, env, tmp_path / "s.log") as s,
        ):
            eventually(lambda: column(sql, COUNT) > [4])
            demoted.replicaof("127.0.0.1", str(new.port))
            eventually(lambda: worker.get("/readyz").status_code == 503)
            eventually(lambda: "tick not sent" in s.text)
            proxy.lead_to(new.port)
            eventually(lambda: worker.get("/readyz").status_code == 200)
            before = column(sql, COUNT)
            eventually(lambda: column(sql, COUNT) > before)
            lines = [
                record for record in worker.records if record.get("logger") != "worker" and "Redis" in record["msg"]
            ]
            assert [(line["msg"], line.get("error")) for line in lines] == [
                ("Redis refuses our commands; waiting", "READONLY"),
                ("Redis is back", None),
            ]
            assert "Traceback" not in worker.text + s.text
