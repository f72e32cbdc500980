"""Exactly once, under load and under kill -9: three schedulers and four workers, every cadence one second.

    python -m bench.chaos [seconds]

Two rounds of so many seconds (60): one that is left alone, and one in which a random worker is killed every second
and started again. Every statement of the first round is logged by PostgreSQL, so that what the losers sent can be
counted. All traffic stays on the loopback interface, and all processes end with the round.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import tempfile
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from actors import SWEEPERS
from app.demo import data
from app.demo.servers import Postgres, Redis
from app.overview.history.transaction import looking_back
from app.overview.history.verifying import Known, verify
from app.storage import migrations
from bench.arguments import numbers
from tests.support.processes import QUICK, SCHEDULER, WORKER, Process, environment
from tests.support.waiting import eventually

SCHEDULERS, WORKERS = 3, 4
#: As QUICK has it.
LEASE = timedelta(seconds=3)
LEDGER = """
SELECT name, count(*) FILTER (WHERE outcome IN ('running', 'success')) AS committed,
       count(DISTINCT slot) FILTER (WHERE outcome IN ('running', 'success')) AS committed_slots,
       count(DISTINCT slot) FILTER (WHERE outcome <> 'failure') AS slots,
       sum(covered) FILTER (WHERE outcome <> 'failure') AS covered,
       extract(epoch FROM max(slot) - min(slot))::int + 1 AS span,
       count(*) FILTER (WHERE outcome = 'interrupted') AS interrupted,
       count(*) FILTER (WHERE outcome = 'failure') AS failed,
       count(*) FILTER (WHERE outcome = 'running') AS running,
       sum(batches) AS batches, sum(changed) AS changed, count(DISTINCT worker) AS workers,
       bool_and(ordered) AS in_order
  FROM (SELECT *, slot >= coalesce(lag(slot) OVER (PARTITION BY name ORDER BY token), 'epoch') AS ordered
          FROM secrets_bridge_worker.sweep_run WHERE token IS NOT NULL) AS run
 GROUP BY name ORDER BY name
"""
LATENESS = """
SELECT percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY 1000 * extract(epoch FROM started_at - slot))
  FROM secrets_bridge_worker.sweep_run WHERE outcome = 'success'
"""


class Round:
    """One round on servers of its own."""

    def __init__(self, directory: Path, *, kill: bool) -> None:
        self.directory = directory
        self.kill = kill
        self.kills = 0
        self.schedulers: list[Process] = []

    def run(self, seconds: float) -> dict[str, Any]:
        """Start everything, wait, end it, and return the report."""
        logging = {"log_statement": "all", "log_line_prefix": "%a "}
        with (
            Postgres(self.directory, settings=logging) as postgres,
            Redis(self.directory) as redis,
            psycopg.connect(postgres.url(), autocommit=True) as connection,
            ExitStack() as stack,
        ):
            connection.execute(Path("app/demo/control_plane.sql").read_bytes())
            data.pile_up(connection)
            migrations.migrate(connection)
            self.stack, self.postgres, self.redis = stack, postgres, redis
            self.workers = [self.worker(number) for number in range(WORKERS)]
            for worker in self.workers:
                worker.ready()
            for number in range(SCHEDULERS):
                log = self.directory / f"scheduler{number}.log"
                env = environment(postgres.url(), redis.url(), **QUICK)
                self.schedulers.append(stack.enter_context(Process(SCHEDULER, env, log)))
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                data.moment(connection)
                time.sleep(1)
                if self.kill:
                    self.kill_one()
            if self.kill:
                eventually(lambda: self.taken_over(connection))
            statuses = [scheduler.end() for scheduler in self.schedulers]
            for worker in self.workers:
                worker.ready()
            time.sleep(2)  # what is queued is run or skipped by then
            skipped = sum(worker.metric("worker_scheduler_lock_skipped_total") for worker in self.workers)
            outcomes = {
                outcome: sum(worker.metric("worker_scheduler_runs_total", outcome=outcome) for worker in self.workers)
                for outcome in ("success", "failure", "skipped_lock")
            }
            statuses += [worker.end() for worker in self.workers]
            return self.report(connection, skipped, outcomes, statuses)

    def worker(self, number: int) -> Process:
        """Start a worker whose connections are named by its number."""
        url = f"{self.postgres.url()}?application_name=replica{number}"
        log = self.directory / f"worker{number}.log"
        return self.stack.enter_context(
            Process((*WORKER, "--queues", "sweeps"), environment(url, self.redis.url(), **QUICK), log)
        )

    def kill_one(self) -> None:
        """Kill the process that sweeps, or its main process, of a random worker; start another in its place."""
        number = random.randrange(WORKERS)
        worker = self.workers[number]
        family = [worker.popen.pid, *(child.pid for child in worker.workers)]
        os.kill(random.choice(family), signal.SIGKILL)
        self.kills += 1
        if worker.popen.poll() is None:
            os.killpg(worker.popen.pid, signal.SIGKILL)
        worker.popen.wait()
        self.workers[number] = self.worker(number)

    @staticmethod
    def taken_over(connection: Any) -> bool:
        """Return whether no run of a worker that was killed is open any more: its lock had to run out first."""
        query = """
        SELECT NOT EXISTS (SELECT FROM secrets_bridge_worker.sweep_run
                            WHERE outcome = 'running' AND started_at < now() - interval '1 s')
        """
        return bool(connection.execute(query).fetchone()[0])

    def verified(self, connection: Any) -> list[str]:
        """Return what `sb-worker verify` finds wrong with the ledger."""
        known = Known(
            {sweeper.name: timedelta(seconds=1) for sweeper in SWEEPERS}, lambda _name: True, LEASE, lambda _name: False
        )
        with looking_back(connection) as cursor:
            found = verify(cursor, known, timedelta(hours=1))
        return [f"{findings.name}: {fault.check}: {fault.text}" for findings in found for fault in findings.kept]

    def report(
        self, connection: Any, skipped: float, outcomes: dict[str, float], statuses: list[int]
    ) -> dict[str, Any]:
        """Return the figures of the ledger, the metrics and the statement log."""
        with connection.cursor(row_factory=dict_row) as cursor:
            ledger = cursor.execute(LEDGER).fetchall()
        late = connection.execute(LATENESS).fetchone()[0]
        log = self.postgres.log.read_text()
        claims = len(re.findall(r"^replica\d .*\n\s*WITH before AS \(\s*SELECT last_slot", log, re.MULTILINE))
        # A run's transactions begin with its claim or the fence; one that only looks ahead is not kept.
        begun = claims + len(re.findall(r"^\s*WHERE name = .* FOR SHARE$", log, re.MULTILINE))
        return {
            "round": "a worker killed every second" if self.kill else "left alone",
            "kills": self.kills,
            "tasks": [
                {key: int(value) if not isinstance(value, (str, bool)) else value for key, value in row.items()}
                for row in ledger
            ],
            "slots_run_twice": sum(row["committed"] - row["committed_slots"] for row in ledger),
            "slots_neither_run_nor_covered": int(sum(row["span"] - row["slots"] - row["covered"] for row in ledger)),
            "verify_finds": self.verified(connection),
            "ticks": outcomes,
            "lock_skipped": skipped,
            "transactions_begun": begun,
            "transactions_in_ledger": int(sum(row["batches"] for row in ledger)),
            "claims_sent": claims,
            "runs_in_ledger": int(sum(row["committed"] + row["failed"] for row in ledger)),
            "lateness_ms_p50_p99": [round(float(value), 1) for value in late],
            "exit_statuses": statuses,
        }


def main() -> None:
    """Run both rounds and print one JSON object each."""
    (seconds,) = numbers(__doc__, seconds=60.0)
    for kill in (False, True):
        with tempfile.TemporaryDirectory(prefix="sb-chaos-") as directory:
            print(json.dumps(Round(Path(directory), kill=kill).run(seconds)), flush=True)


if __name__ == "__main__":
    main()
