"""What one worker and one scheduler cost when there is nothing to do, and how late their ticks are.

    python -m bench.idle [seconds]

Four sweepers every second on an empty control plane for so many seconds (300); then the memory of each process, the
processor time they used, and the lateness of all runs. Beside it: the best that this machine can do, which is how late
a thread that only sleeps until each full second wakes up.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from pathlib import Path

import psutil
import psycopg

from app.demo.servers import Postgres, Redis
from app.storage import migrations
from bench.arguments import numbers
from tests.support.processes import QUICK, SCHEDULER, WORKER, Process, environment

LATENESS = """
SELECT count(*), percentile_cont(ARRAY[0.5, 0.99, 1.0])
                 WITHIN GROUP (ORDER BY 1000 * extract(epoch FROM started_at - slot)::float8)
  FROM secrets_bridge_worker.sweep_run WHERE outcome = 'success' AND id > 8
"""


class Sleeper(threading.Thread):
    """Sleeps until each full second and records by how many milliseconds it overslept."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.late: list[float] = []

    def run(self) -> None:
        """Sleep and record for ever."""
        while True:
            due = int(time.time()) + 1
            time.sleep(due - time.time())
            self.late.append((time.time() - due) * 1000)


def mebibytes(process: psutil.Process) -> dict[str, float]:
    """Return resident and unique memory, in MiB; processes that were forked share the difference."""
    memory = process.memory_full_info()
    return {"rss": round(memory.rss / 2**20, 1), "uss": round(memory.uss / 2**20, 1)}


def main() -> None:
    """Print one JSON object."""
    (seconds,) = numbers(__doc__, seconds=300.0)
    with (
        tempfile.TemporaryDirectory(prefix="sb-idle-") as directory,
        Postgres(Path(directory)) as postgres,
        Redis(Path(directory)) as redis,
        psycopg.connect(postgres.url(), autocommit=True) as connection,
    ):
        connection.execute(Path("app/demo/control_plane.sql").read_bytes())
        migrations.migrate(connection)
        env = environment(postgres.url(), redis.url(), **QUICK)
        with (
            Process(WORKER, env, Path(directory) / "worker.log") as worker,
            Process(SCHEDULER, env, Path(directory) / "scheduler.log") as scheduler,
        ):
            worker.ready()
            family = {"worker_main": psutil.Process(worker.popen.pid), "worker": worker.workers[0]}
            family["scheduler"] = psutil.Process(scheduler.popen.pid)
            sleeper = Sleeper()
            sleeper.start()
            time.sleep(seconds)
            count, (p50, p99, most) = connection.execute(LATENESS).fetchone() or (0, (0, 0, 0))
            late = sorted(sleeper.late)
            report = {
                "memory_mib": {name: mebibytes(process) for name, process in family.items()},
                "cpu_percent": {
                    name: round(100 * sum(process.cpu_times()[:2]) / seconds, 2) for name, process in family.items()
                },
                "runs": count,
                "lateness_ms": {"p50": round(p50, 1), "p99": round(p99, 1), "max": round(most, 1)},
                "a_sleeping_thread_ms": {
                    "p50": round(late[len(late) // 2], 1),
                    "p99": round(late[int(len(late) * 0.99)], 1),
                    "max": round(late[-1], 1),
                },
                "exit_statuses": [worker.end(), scheduler.end()],
            }
            print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
