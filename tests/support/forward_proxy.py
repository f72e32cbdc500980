"""Proxies that make tunnels: one that is told what names stand for, and Debian's tinyproxy."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote

from app.demo.ports import reserved_port
from tests.support import packages
from tests.support.waiting import HUNG, eventually


class ForwardProxy:
    """A proxy on the loopback interface, with a resolver of its own: `hosts` are ports by names.

    With a `login` (`user:password`) it wants it. `refuse` is a status that everybody gets, 0 for none, -1 for silence;
    `established` is what is said of a tunnel.
    """

    def __init__(
        self,
        hosts: Mapping[str, int] | None = None,
        *,
        login: str = "",
        refuse: int = 0,
        tls: ssl.SSLContext | None = None,
        established: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n",
    ) -> None:
        self.hosts = dict(hosts or {})
        self.login, self.refuse, self._tls, self._established = login, refuse, tls, established
        #: What was asked for, `host:port`; and the whole of what was said in the clear.
        self.asked: list[str] = []
        self.heads: list[str] = []
        self.open = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._run()], daemon=True)

    @property
    def url(self) -> str:
        """Where it is."""
        login = ":".join(quote(part, safe="") for part in self.login.split(":", 1)) + "@" if self.login else ""
        return f"{'https' if self._tls else 'http'}://{login}127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(HUNG)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(HUNG)
        self._loop.close()

    async def _run(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._answer(reader, writer)
        finally:
            self.open -= 1
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        method, target, _ = head.split("\r\n", 1)[0].split(" ")
        assert method == "CONNECT"
        self.asked.append(target)
        if self.refuse < 0:
            await reader.read()
            return
        wanted = f"Proxy-Authorization: Basic {b64encode(self.login.encode()).decode()}"
        status = 407 if self.login and wanted not in head else self.refuse
        port = self.hosts.get(target.rpartition(":")[0])
        if status or port is None:
            writer.write(f"HTTP/1.1 {status or 502} No\r\nContent-Length: 6\r\n\r\ncanary".encode())
            await writer.drain()
            return
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(self._established)
        copies = [asyncio.ensure_future(_copy(*pair)) for pair in ((reader, inner_writer), (inner_reader, writer))]
        try:
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for copy in copies:
                copy.cancel()
            inner_writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()


@contextmanager
def tinyproxy(directory: Path) -> Iterator[tuple[str, Path]]:
    """Run tinyproxy, which wants a login; yield its URL and its log. Skips the test where it is not installed."""
    program = packages.program("tinyproxy", "tinyproxy")
    log = directory / "tinyproxy.log"
    with reserved_port() as port:
        lines = (f"Port {port}", "Listen 127.0.0.1", f'LogFile "{log}"', "LogLevel Info", "BasicAuth worker s3cret")
        (directory / "tinyproxy.conf").write_text("\n".join(lines) + "\n")
        command = [str(program), "-d", "-c", str(directory / "tinyproxy.conf")]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                eventually(lambda: log.exists() and "Accepting connections" in log.read_text())
                yield f"http://worker:s3cret@127.0.0.1:{port}", log
            finally:
                process.kill()
