"""Two requests for each due application of one ArgoCD, or one list of all applications: what each costs.

    python -m bench.gitops_list [due] [milliseconds]

A stand-in with 2,000 and with 10,000 applications answers on the loopback interface, from a process of its own, each
call after so many milliseconds; its lists are made beforehand, which flatters them. `fields` selects what ArgoCD can
select of a list (pkg/apiclient/application/forwarder_overwrite.go): `reconciledAt` is not among it, so what looks
applied is asked for by itself. Way and way again, medians.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from app.core import bounded_input, egress, http
from app.core.dialling import DiallingTransport
from app.gitops.client import MOST_BODY, MOST_VALUES
from app.supervisor.parent_death import signal_at_parent_death
from bench.arguments import numbers
from tests.support.argocd import TREE

SIZES, ROUNDS, AT_ONCE = (2_000, 10_000), 3, 8
FIELDS = "fields=items.metadata.name,items.status.sync,items.status.health,items.status.operationState"


def _document(number: int) -> dict[str, Any]:
    """Return an application with 20 resources and 10 former revisions, 8 KiB."""
    resource = {"group": "apps", "version": "v1", "kind": "Deployment", "namespace": "apps", "status": "Synced"}
    resources = [{**resource, "name": f"api-{row}", "health": {"status": "Healthy"}} for row in range(20)]
    source = {"repoURL": "https://git.example/apps.git", "path": f"apps/{number}", "targetRevision": "main"}
    history = [
        {"id": row, "revision": "6d2f1c" * 6, "deployedAt": "2026-11-01T00:00:00Z", "source": source}
        for row in range(10)
    ]
    status = {
        **_selected(number)["status"],
        "reconciledAt": "2026-11-23T09:00:30Z",
        "resources": resources,
        "history": history,
    }
    status["operationState"] = {
        **status["operationState"],
        "syncResult": {"resources": resources, "revision": "6d2f1c" * 6},
    }
    return {
        "metadata": {"name": f"app-{number:05}", "namespace": "argocd"},
        "spec": {"source": source},
        "status": status,
    }


def _selected(number: int) -> dict[str, Any]:
    """Return what `fields` leaves of it."""
    return {
        "metadata": {"name": f"app-{number:05}"},
        "status": {
            "sync": {"status": "Synced", "revision": "6d2f1c" * 6},
            "health": {"status": "Progressing", "lastTransitionTime": "2026-11-23T08:00:00Z"},
            "operationState": {
                "phase": "Succeeded",
                "startedAt": "2026-11-23T08:00:00Z",
                "finishedAt": "2026-11-23T08:00:09Z",
            },
        },
    }


async def _serve(size: int, seconds: float) -> None:
    selected = json.dumps({"metadata": {}, "items": [_selected(number) for number in range(size)]}).encode()
    whole = json.dumps({"metadata": {}, "items": [_document(number) for number in range(size)]}).encode()
    one, tree = json.dumps(_document(0)).encode(), json.dumps(TREE).encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                path = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1].decode()
                await asyncio.sleep(seconds)
                body = tree if path.endswith("/resource-tree") else one
                if path.startswith("/api/v1/applications?") or path == "/api/v1/applications":
                    body = selected if "fields=" in path else whole
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
                )
                writer.write(body)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.sleep(600)


async def _ask(url: str, paths: list[str]) -> int:
    """Ask for these, so many at once; return how many bytes came. An answer that is too long is not parsed."""
    client = http.Client(DiallingTransport(http.system_context(), egress.resolve))
    left, taken = iter(paths), [0]

    async def work() -> None:
        for path in left:
            response = await client.send(client.build_request("GET", url + path))
            body = await http.read(response, MOST_BODY)
            await response.aclose()
            taken[0] += len(body)
            if len(body) <= MOST_BODY:
                bounded_input.parse(body, most=MOST_VALUES)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    await client.aclose()
    return taken[0]


def _ways(due: int) -> dict[str, Callable[[str], Coroutine[Any, Any, int]]]:
    applications = [f"/api/v1/applications/app-{number:05}" for number in range(due)]
    trees = [f"{path}/resource-tree" for path in applications]

    async def listed(url: str, more: list[str]) -> int:
        return await _ask(url, [f"/api/v1/applications?{FIELDS}"]) + await _ask(url, more)

    return {
        "two requests each": lambda url: _ask(url, applications + trees),
        "list, trees; none looks applied": lambda url: listed(url, trees),
        "list, trees; half look applied": lambda url: listed(url, trees + applications[: due // 2]),
        "list, trees; all look applied": lambda url: listed(url, trees + applications),
        "the list with fields alone": lambda url: listed(url, []),
        "the list without fields alone": lambda url: _ask(url, ["/api/v1/applications"]),
    }


def main() -> None:
    """Print one JSON object for each way and size."""
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(_serve(int(sys.argv[2]), float(sys.argv[3])))
        return
    due, milliseconds = numbers(__doc__, due=500, milliseconds=50.0)
    for size in SIZES:
        command = [sys.executable, "-m", "bench.gitops_list", "serve", str(size), str(milliseconds / 1000)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=signal_at_parent_death) as argo:  # noqa: PLW1509
            assert argo.stdout is not None
            url = f"http://127.0.0.1:{int(argo.stdout.readline())}"
            found: dict[str, list[tuple[float, float, int]]] = {way: [] for way in _ways(due)}
            for _ in range(ROUNDS):
                for way, work in _ways(due).items():
                    started, cpu = time.perf_counter(), time.process_time()
                    taken = asyncio.run(work(url))
                    found[way].append((time.perf_counter() - started, time.process_time() - cpu, taken))
            for way, runs in found.items():
                seconds, cpu, taken = (statistics.median(column) for column in zip(*runs, strict=True))
                figures = {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "mib": round(taken / 1024**2, 1)}
                print(json.dumps({"applications": size, "due": due, "way": way, **figures}), flush=True)
            argo.terminate()


if __name__ == "__main__":
    main()
