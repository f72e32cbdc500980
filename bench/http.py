"""Requests a second and CPU a request: httpx as it comes, and with the transport and client of this project.

    python -m bench.http [requests] [at once]

The server is a process of its own on the loopback interface that writes the same bytes to whatever it is asked. Way and
way again in one run, medians with the least and the most.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx

from app.core import egress, http
from app.core.dialling import DiallingTransport
from app.supervisor.parent_death import signal_at_parent_death
from bench.arguments import numbers

ROUNDS, DEADLINE, LIMIT = 7, 10.0, 64 * 1024
BODY = json.dumps(
    {"metadata": {"name": "app"}, "status": {"health": {"status": "Healthy"}, "more": "x" * 1000}}
).encode()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


class _Server(asyncio.Protocol):
    """Answers each request without a body."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(ANSWER * data.count(b"\r\n\r\n"))


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Server, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.sleep(600)


async def _ask(client: Any, url: str, requests: int, at_once: int) -> None:
    left = iter(range(requests))
    send = client.send if isinstance(client, http.Client) else partial(client.send, stream=True)

    async def work() -> None:
        for _ in left:
            async with asyncio.timeout(DEADLINE):
                response = await send(client.build_request("GET", url))
                assert len(await http.read(response, LIMIT)) == len(BODY)
                await response.aclose()

    await asyncio.gather(*(work() for _ in range(at_once)))
    await client.aclose()


WAYS: dict[str, Callable[[], Any]] = {
    "httpx as it comes": lambda: httpx.AsyncClient(trust_env=False, verify=http.system_context()),
    "ours": lambda: http.Client(DiallingTransport(http.system_context(), egress.resolve)),
}


def main() -> None:
    """Print one JSON object for each way."""
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(_serve())
        return
    requests, at_once = (int(number) for number in numbers(__doc__, requests=1000, at_once=8))
    command = [sys.executable, "-m", "bench.http", "serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=signal_at_parent_death) as server:  # noqa: PLW1509
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/"
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for _ in range(ROUNDS):
            for way, make in WAYS.items():
                started, cpu = time.perf_counter(), time.process_time()
                asyncio.run(_ask(make(), url, requests, at_once))
                taken = requests / (time.perf_counter() - started), (time.process_time() - cpu) / requests * 1000
                found[way].append(taken)
        server.terminate()
    for way, runs in found.items():
        rates = sorted(rate for rate, _ in runs)
        print(
            json.dumps(
                {
                    "way": way,
                    "requests_per_second": round(statistics.median(rates)),
                    "from_to": [round(rates[0]), round(rates[-1])],
                    "cpu_ms_per_request": round(statistics.median(cpu for _, cpu in runs), 3),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
