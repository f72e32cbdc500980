"""What a replica costs when there is nothing to do, what it takes to get there, and how late its sweeps are.

    python -m bench.idle [idle seconds] [busy seconds]

`sb-worker run` with a webhook on an empty control plane, first with processes of their own for sweeps and notifications
and then with one for all: seconds and processor time until it is ready; with default cadences commands of Redis a
second (those that a client sends, and those inside of scripts too), processor time, and memory by the proportional set
size; then four sweepers each second for the lateness of all runs. Beside it: the best that this machine can do, which
is how late a thread that only sleeps until each full second wakes up.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis as redis_py

from app.demo.servers import Postgres, Redis
from app.storage import migrations
from bench.arguments import numbers
from tests.support.http_server import Receiver
from tests.support.ports import reserved_port
from tests.support.processes import QUICK, Process, environment
from tests.support.waiting import eventually

LATENESS = """
SELECT count(*), percentile_cont(ARRAY[0.5, 0.99, 1.0])
                 WITHIN GROUP (ORDER BY 1000 * extract(epoch FROM started_at - slot)::float8)
  FROM secrets_bridge_worker.sweep_run WHERE outcome = 'success' AND started_at > %(since)s
"""
BUSY = {name: QUICK[name] for name in QUICK if name.split("_")[2] in {"WRAPS", "SECRETS", "AGENTS", "JOBS"}}
REST = {f"SB_SWEEP_{name}_INTERVAL": "1h" for name in ("REVEAL", "CROSS_TEAM_FILL", "DISCOVER", "DISCOVER_STUCK")}
#: What a client sends; the others are called by its scripts.
SENT = ("evalsha", "blmove", "hello", "ping")


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


def family(replica: Process) -> list[psutil.Process]:
    """Return the runner and all that it has started."""
    runner = psutil.Process(replica.popen.pid)
    return [runner, *runner.children(recursive=True)]


def name(process: psutil.Process) -> str:
    """Return what a process is called, with its number."""
    return f"{process.name()} {process.pid}"


def proportional(process: psutil.Process) -> float:
    """Return the proportional set size in MiB: pages that several processes share are counted once."""
    return round(process.memory_full_info().pss / 2**20, 1)


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Return the processor time that processes, and the children that the first one has waited for, have used."""
    return sum(sum(process.cpu_times()[:2]) for process in processes) + sum(processes[0].cpu_times()[2:4])


def calls(redis: redis_py.Redis) -> dict[str, int]:
    """Return how often Redis has executed each command."""
    return {key.removeprefix("cmdstat_"): value["calls"] for key, value in redis.info("commandstats").items()}


@contextmanager
def replica(env: dict[str, str], log: Path) -> Iterator[tuple[Process, dict[str, Any]]]:
    """Run a replica, and yield it with what it took until all of it was ready."""
    with reserved_port() as port:
        began = time.monotonic()
        with Process(("sb-worker", "run"), {**env, "SB_NOTIFICATION_LOCAL_ADDR": f"127.0.0.1:{port}"}, log) as process:
            process.ready()
            ready = 1 if env["SB_WORKER_ROLE"] == "all" else 2
            eventually(lambda: process.text.count('"worker ready"') == ready)
            seconds, used = time.monotonic() - began, cpu_seconds(family(process))
            yield process, {"seconds": round(seconds, 2), "cpu_seconds": round(used, 2)}
            process.end()


def idle(process: Process, redis: redis_py.Redis, seconds: float) -> dict[str, Any]:
    """Measure a replica with nothing to do."""
    time.sleep(5)  # its first ticks
    before, used = calls(redis), {name(one): cpu_seconds([one]) for one in family(process)}
    time.sleep(seconds)
    after = {command: number - before.get(command, 0) for command, number in calls(redis).items() if command != "info"}
    memory = {name(one): proportional(one) for one in family(process)}
    cpu = {name(one): round(100 * (cpu_seconds([one]) - used[name(one)]) / seconds, 3) for one in family(process)}
    ticks = after.get("rpush", 0)  # each has asked for the time once, or less
    return {
        "redis_commands_a_second": round(sum(after.values()) / seconds, 1),
        "redis_commands_sent_a_second": round((sum(after.get(one, 0) for one in SENT) + ticks) / seconds, 1),
        "cpu_percent": {**cpu, "all": round(sum(cpu.values()), 3)},
        "pss_mib": {**memory, "all": round(sum(memory.values()), 1)},
    }


def lateness(sql: psycopg.Connection[Any], seconds: float) -> dict[str, Any]:
    """Measure the sweeps of the replica that runs, and a sleeping thread beside it."""
    time.sleep(3)
    row = sql.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    sleeper = Sleeper()
    sleeper.start()
    time.sleep(seconds)
    count, (p50, p99, most) = sql.execute(LATENESS, {"since": row[0]}).fetchone() or (0, (0, 0, 0))
    late = sorted(sleeper.late)
    return {
        "runs": count,
        "lateness_ms": {"p50": round(p50, 1), "p99": round(p99, 1), "max": round(most, 1)},
        "a_sleeping_thread_ms": {"p50": round(late[len(late) // 2], 1), "max": round(late[-1], 1)},
    }


def main() -> None:
    """Print one JSON object for each role."""
    idle_seconds, busy_seconds = numbers(__doc__, idle=60.0, busy=60.0)
    with (
        tempfile.TemporaryDirectory(prefix="sb-idle-") as directory,
        Postgres(Path(directory)) as postgres,
        Redis(Path(directory)) as server,
        redis_py.Redis.from_url(server.url()) as redis,
        psycopg.connect(postgres.url(), autocommit=True) as sql,
        Receiver() as receiver,
    ):
        sql.execute(Path("app/demo/control_plane.sql").read_bytes())
        migrations.migrate(sql)
        sink = {
            "SB_NOTIFICATION_WEBHOOK_URL": f"{receiver.url}/hook",
            "SB_NOTIFICATION_ALLOWED_NETWORKS": "127.0.0.0/8",
        }
        for role in ("separate", "all"):
            env = environment(postgres.url(), server.url(), **sink, SB_WORKER_ROLE=role)
            with replica(env, Path(directory) / f"{role}.log") as (process, start):
                report = {"role": role, "until_ready": start, "idle": idle(process, redis, idle_seconds)}
            with replica({**env, **BUSY, **REST}, Path(directory) / f"{role}-busy.log"):
                report["busy"] = lateness(sql, busy_seconds)
            print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
