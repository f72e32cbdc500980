"""A receiver of webhooks that costs little, as a process of its own: it answers, counts, and knows when.

    python -m bench.receiver

Prints its port. A POST is answered with 200; a GET with how many came since the last GET, and the seconds from the
first to the last of them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import httpx

from bench.world import child

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"


class Got(NamedTuple):
    """What has arrived."""

    arrived: int
    seconds: float


class Receiver:
    """The process, as its owner sees it."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/hook"

    def got(self) -> Got:
        """Return what has arrived since this was asked last."""
        return Got(**httpx.get(self.url, trust_env=False).json())


@contextmanager
def receiver() -> Iterator[Receiver]:
    """Yield a receiver that runs."""
    command = [sys.executable, "-m", "bench.receiver"]
    with child(command) as process:
        assert process.stdout is not None
        yield Receiver(int(process.stdout.readline()))
        process.terminate()


class _Server:
    def __init__(self) -> None:
        self.times: list[float] = []

    async def serve(self) -> None:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0, backlog=256)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET"):
                    writer.write(self._told())
                    continue
                length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length or 0))
                self.times.append(time.monotonic())
                writer.write(_ANSWER)
        writer.close()

    def _told(self) -> bytes:
        seconds = self.times[-1] - self.times[0] if self.times else 0.0
        body = json.dumps({"arrived": len(self.times), "seconds": seconds}).encode()
        self.times.clear()
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


if __name__ == "__main__":
    asyncio.run(_Server().serve())
