"""The HTTP side of a worker: /healthz, /readyz and /metrics on SB_WORKER_LOCAL_ADDR.

Served by a thread of the first worker process, so that a worker that hangs as a whole also stops answering, and
an address that is taken stops the boot instead of going unnoticed. /healthz is about this process alone.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from app.core.errors import describe

#: Kubernetes gives a probe one second; a server that hangs must not make the probe hang with it.
CHECK_SECONDS = 0.8
#: A run of this replica that was reloaded may hold the address for a moment longer.
BIND_SECONDS = 2.0

Check = Callable[[], object]


class Readiness:
    """Whether this replica can do its work now."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks = {name: _Bounded(check) for name, check in checks.items()}
        self.booted = False
        self.draining = False

    def answer(self) -> tuple[int, dict[str, Any]]:
        """Return the HTTP status and body of /readyz."""
        if not self.booted:
            return 503, {"status": "booting"}
        if self.draining:
            return 503, {"failing": {"worker": "draining"}, "status": "not_ready"}
        started = {name: check.start() for name, check in self._checks.items()}
        failing = {name: text for name, wait in started.items() if (text := wait())}
        return (503, {"failing": failing, "status": "not_ready"}) if failing else (200, {"status": "ready"})


class _Bounded:
    """Runs a check in a thread and waits for it a bounded time; a check that hangs is never started twice."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._lock = threading.Lock()
        self._done: threading.Event | None = None
        self._result = ""

    def start(self) -> Callable[[], str]:
        with self._lock:
            if self._done is None or self._done.is_set():
                self._done = threading.Event()
                threading.Thread(target=self._run, args=[self._done], daemon=True).start()
            done = self._done
        deadline = time.monotonic() + CHECK_SECONDS
        return lambda: self._result if done.wait(deadline - time.monotonic()) else "timeout"

    def _run(self, done: threading.Event) -> None:
        try:
            self._check()
        except Exception as error:  # noqa: BLE001 - its name is the answer
            self._result = describe(error).error
        else:
            self._result = ""
        finally:
            done.set()


class _Handler(BaseHTTPRequestHandler):
    """Answers any method, as the Go worker does."""

    protocol_version = "HTTP/1.1"
    timeout = 10

    def _answer(self) -> None:
        server = cast("_Server", self.server)
        path = self.path.partition("?")[0]
        if path == "/healthz":
            self._send(200, b'{"status":"ok"}')
        elif path == "/readyz":
            status, body = server.readiness.answer()
            self._send(status, json.dumps(body, separators=(",", ":"), sort_keys=True).encode() + b"\n")
        elif path == "/metrics":
            self._send(200, server.exposition(), CONTENT_TYPE_LATEST)
        else:
            self._send(404, b'{"status":"not found"}')

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _answer  # noqa: N815

    def _send(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Probes come every few seconds; none of them is worth a line."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 32

    def __init__(
        self, address: tuple[str, int], readiness: Readiness, metrics_directory: str, collectors: Sequence[Any]
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.readiness = readiness
        self._metrics_directory = metrics_directory
        self._collectors = collectors
        super().__init__(address, _Handler)

    def exposition(self) -> bytes:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=self._metrics_directory)  # type: ignore[no-untyped-call]
        ProcessCollector(registry=registry)
        for collector in self._collectors:
            registry.register(collector)
        return generate_latest(registry)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle of an answer is no news."""


def serve(
    address: tuple[str, int], readiness: Readiness, metrics_directory: str, collectors: Sequence[Any] = ()
) -> None:
    """Serve in a thread of its own, with the samples of these collectors too.

    Raises OSError when the address stays taken for two seconds.
    """
    deadline = time.monotonic() + BIND_SECONDS
    while True:
        try:
            server = _Server(address, readiness, metrics_directory, collectors)
            break
        except OSError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.1)
    threading.Thread(target=server.serve_forever, name="probes", daemon=True).start()
