"""Polling ArgoCD: 500 observations on 5 endpoints, 50 ms a call, two calls an observation.

    python -m bench.gitops [observations] [milliseconds]

Runs of the sweeper, and the same calls by a bare concurrent httpx loop, in turns; one run with an endpoint that hangs;
the calls one after the other. The server is a process of its own on the loopback interface. Everything shares the
machine's cores: compare what the same run prints.
"""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
from psycopg import Connection
from psycopg_pool import ConnectionPool

from actors.gitops_poller import GitopsPoller, gitops_poller
from app.core.logging import configure_logging
from app.demo.servers import Postgres
from app.notify.outbox import Outbox
from app.notify.routing import Router
from app.storage import migrations
from app.supervisor.parent_death import signal_at_parent_death
from app.sweeping.lock import Lease, Tick
from app.sweeping.runner import Runner
from bench.arguments import numbers
from tests.support.argocd import TREE, document, insert_endpoint, insert_observations, settings

ENDPOINTS, ROUNDS = 5, 5
HANG = "hang"
LATEST = """
SELECT e.name, count(*), min(o.polls_count), extract(epoch FROM max(o.updated_at) - min(r.started_at))::float
  FROM gitops_observations AS o JOIN argocd_endpoints AS e ON e.id = o.argocd_endpoint_id,
       (SELECT started_at FROM secrets_bridge_worker.sweep_run ORDER BY id DESC LIMIT 1) AS r
 GROUP BY e.name ORDER BY e.name
"""


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    """Answer requests on one connection until it is closed; an application called `hang...` is never answered."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].decode()
            name = path.split("/")[4]
            await asyncio.sleep(3600 if name.startswith(HANG) else seconds)
            tree = path.endswith("/resource-tree")
            body = json.dumps(TREE if tree else document(name, "Progressing")).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body))
            writer.write(body)
            await writer.drain()
    writer.close()


async def _serve(seconds: float) -> None:
    servers = [
        await asyncio.start_server(lambda r, w: _answer(r, w, seconds), "127.0.0.1", 0) for _ in range(ENDPOINTS)
    ]
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    await asyncio.sleep(600)


def fill(url: str, ports: list[int], rows: int, *, hanging: bool) -> None:
    """Replace the observations by so many new ones, those of the first endpoint unanswered if `hanging`."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("TRUNCATE gitops_observations, argocd_endpoints, secrets_bridge_worker.sweep_state CASCADE")
        connection.execute("TRUNCATE secrets_bridge_worker.sweep_run")
        for number, port in enumerate(ports):
            prefix = HANG if hanging and number == 0 else "app"
            names = [f"{prefix}-{row:04}" for row in range(rows // ENDPOINTS)]
            insert_observations(
                connection, insert_endpoint(connection, f"argo-{number}", f"http://127.0.0.1:{port}"), *names
            )
        connection.execute("ANALYZE")


def poll(url: str, poller: GitopsPoller) -> dict[str, Any]:
    """Do one run as the worker does; return how long it took and when each endpoint was done, in seconds."""
    tick = Tick(Lease("gitops-poller", "bench", time.monotonic(), timedelta(hours=1)), poller.interval)
    with ConnectionPool[Connection[Any]](url, kwargs={"autocommit": True}, min_size=1, max_size=2) as pool:
        runner = Runner(pool, "bench", timedelta(seconds=15), timedelta(days=7), Outbox(Router([]), lambda _id: None))
        batches: list[float] = []
        runner.on_batch = batches.append
        cpu, started = time.process_time(), time.perf_counter()
        sweep = runner.run(gitops_poller, poller, tick).sweep
        seconds = time.perf_counter() - started
        cpu = time.process_time() - cpu
    with psycopg.connect(url) as connection:
        ends = {row[0]: round(row[3], 2) for row in connection.execute(LATEST)}
    return {
        "seconds": round(seconds, 2),
        "succeeded": sweep.counts["succeeded"],
        "failed": sweep.counts["failed"],
        "calls_per_second": round(2 * sweep.counts["succeeded"] / seconds),
        "cpu_ms_per_call": round(cpu * 1000 / max(1, 2 * sweep.counts["succeeded"]), 2),
        "transactions": len(batches),
        "in_transactions_seconds": round(sum(batches), 2),
        "endpoint_done_after_seconds": ends,
    }


def paths(rows: int) -> list[str]:
    """Return the paths that are requested from one endpoint."""
    names = [f"/api/v1/applications/app-{row:04}" for row in range(rows // ENDPOINTS)]
    return [path for name in names for path in (name, f"{name}/resource-tree")]


async def bare(ports: list[int], rows: int, at_once: int) -> None:
    """Make the same calls with as many at once to each endpoint, and do nothing with the answers."""

    async def call(client: httpx.AsyncClient, limit: asyncio.Semaphore, url: str) -> None:
        async with limit:
            (await client.get(url)).json()

    async with asyncio.TaskGroup() as group:
        clients = []
        for port in ports:
            client, limit = httpx.AsyncClient(trust_env=False), asyncio.Semaphore(at_once)
            clients.append(client)
            for path in paths(rows):
                group.create_task(call(client, limit, f"http://127.0.0.1:{port}{path}"))
    for client in clients:
        await client.aclose()


def in_turns(url: str, ports: list[int], rows: int, at_once: int) -> None:
    """Poll, and make the same calls, in turns; report the medians, the least and the most, and how they compare."""
    sweeps, rates = [], []
    for _ in range(ROUNDS):
        fill(url, ports, rows, hanging=False)
        sweeps.append(poll(url, settings(concurrency=at_once)))
        started, cpu = time.perf_counter(), time.process_time()
        asyncio.run(bare(ports, rows, at_once))
        rates.append((2 * rows / (time.perf_counter() - started), (time.process_time() - cpu) * 1000 / (2 * rows)))
    ours = [sweep["calls_per_second"] for sweep in sweeps]
    _report(
        f"sweep, {at_once} at once",
        calls_per_second=statistics.median(ours),
        from_to=[min(ours), max(ours)],
        cpu_ms_per_call=statistics.median(sweep["cpu_ms_per_call"] for sweep in sweeps),
        transactions=statistics.median(sweep["transactions"] for sweep in sweeps),
        in_transactions_seconds=statistics.median(sweep["in_transactions_seconds"] for sweep in sweeps),
    )
    _report(
        f"bare httpx, {at_once} at once",
        calls_per_second=round(statistics.median(rate for rate, _ in rates)),
        from_to=[round(min(rate for rate, _ in rates)), round(max(rate for rate, _ in rates))],
        cpu_ms_per_call=round(statistics.median(cpu for _, cpu in rates), 2),
        the_sweep_to_it=round(statistics.median(own / rate for own, (rate, _) in zip(ours, rates, strict=True)), 2),
    )


def in_turn(ports: list[int], rows: int) -> None:
    """Make the same calls one after the other, on kept connections."""
    for port in ports:
        with httpx.Client(trust_env=False) as client:
            for path in paths(rows):
                client.get(f"http://127.0.0.1:{port}{path}").json()


def _report(way: str, **figures: Any) -> None:
    print(json.dumps({"way": way, **figures}), flush=True)


def main() -> None:
    """Print one JSON object for each way to poll."""
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(_serve(float(sys.argv[2])))
        return
    configure_logging("error")
    rows, milliseconds = numbers(__doc__, rows=500, milliseconds=50.0)
    seconds = milliseconds / 1000
    command = [sys.executable, "-m", "bench.gitops", "serve", str(seconds)]
    with (
        tempfile.TemporaryDirectory() as directory,
        Postgres(Path(directory), durable=True) as server,
        subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=signal_at_parent_death) as argo,  # noqa: PLW1509
    ):
        assert argo.stdout is not None
        ports = json.loads(argo.stdout.readline())
        url = server.url()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(Path("app/demo/control_plane.sql").read_bytes())
            migrations.migrate(connection)
        calls = rows * 2
        for at_once in (8, 16):
            in_turns(url, ports, rows, at_once)
        fill(url, ports, rows, hanging=True)
        _report("sweep, one endpoint hangs", **poll(url, settings(interval=timedelta(minutes=1))))
        started = time.perf_counter()
        in_turn(ports, rows)
        took = time.perf_counter() - started
        _report("one after the other", seconds=round(took, 2), calls_per_second=round(calls / took))
        _report("memory", rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        argo.terminate()


if __name__ == "__main__":
    main()
