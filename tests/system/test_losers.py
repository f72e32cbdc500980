"""Three schedulers and four workers: each slot is run once, and who loses a tick asks PostgreSQL nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from psycopg import Connection

from tests.chaos.deployment import Deployment, Plan
from tests.chaos.surroundings.load import Load
from tests.support.rows import rows
from tests.support.waiting import eventually

#: Each statement that a process sends, under the process's name.
STATEMENTS = {"log_statement": "all", "log_line_prefix": "%a "}
LEDGER = """
SELECT count(*) AS rows, count(*) FILTER (WHERE outcome = 'success') AS runs, count(DISTINCT (name, slot)) AS slots,
       count(DISTINCT name) AS names, coalesce(sum(batches), 0) AS transactions
  FROM secrets_bridge_worker.sweep_run
"""
ENDED = "SELECT NOT EXISTS (SELECT FROM secrets_bridge_worker.sweep_run WHERE outcome = 'running')"


def ledger(sql: Connection[Any]) -> dict[str, int]:
    (found,) = rows(sql, LEDGER)
    return {name: int(value) for name, value in found.items()}


def test_each_slot_is_run_once_and_losers_ask_postgres_nothing(tmp_path: Path) -> None:
    plan = Plan(numbers={"scheduler": 3, "worker": 4}, postgres_settings=STATEMENTS)
    with Deployment(tmp_path, plan) as deployment, deployment.sql() as sql:
        with Load(deployment.postgres.url(), seed=1):
            eventually(lambda: ledger(sql)["runs"] > 6 * ledger(sql)["names"] > 0)
        for name in deployment.names("scheduler"):
            assert deployment.processes[name].end() == 0
        workers = [deployment.processes[name] for name in deployment.names("worker")]

        def ticks(outcome: str) -> float:
            return sum(worker.metric("worker_scheduler_runs_total", outcome=outcome) for worker in workers)

        def lock_skipped() -> float:
            return sum(worker.metric("worker_scheduler_lock_skipped_total") for worker in workers)

        # What is queued is run or skipped by then: the last run is counted after its row was committed.
        with deployment.client() as client:
            eventually(lambda: client.llen("dramatiq:sweeps") == 0)
        eventually(lambda: sql.execute(ENDED).fetchone() == (True,) and ticks("success") == ledger(sql)["runs"])
        assert ticks("skipped_lock") > 0
        eventually(lambda: lock_skipped() == ticks("skipped_lock"))
        assert ticks("failure") == 0
        assert [worker.end() for worker in workers] == [0] * 4
        done = ledger(sql)
        log = deployment.postgres.log.read_text()

    claims = len(re.findall(r"^worker\d .*\n\s*WITH before AS \(\s*SELECT token, last_slot", log, re.MULTILINE))
    # A run's transactions begin with its claim or the fence; one that only looks ahead is not kept.
    begun = claims + len(re.findall(r"^\s*WHERE name = .* FOR SHARE$", log, re.MULTILINE))
    # A row that another sweeper held for too long: that transaction is rolled back, with its claim, and begun again.
    again = len(re.findall(r"^worker\d ERROR:  canceling statement due to lock timeout$", log, re.MULTILINE))
    assert done["rows"] == done["runs"] == done["slots"]
    assert done["rows"] <= claims <= done["rows"] + again
    assert begun == done["transactions"] + again
