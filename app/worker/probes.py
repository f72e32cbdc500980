"""The HTTP side of a worker: /healthz, /readyz and /metrics on SB_WORKER_LOCAL_ADDR.

Served by a thread of the first worker process, so that a worker that hangs as a whole also stops answering, and
an address that is taken stops the boot instead of going unnoticed. /healthz is about this process alone.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import Future

import structlog
from prometheus_client import CONTENT_TYPE_LATEST

from app.core import threads
from app.core.errors import describe
from app.worker.fresh import Fresh
from app.worker.probe_server import Answer, Pending, ProbeServer, listen
from app.worker.readiness import Readiness

log = structlog.get_logger("worker")

#: A run of this replica that was reloaded may hold the address for a moment longer.
BIND_SECONDS = 2.0
#: How old an exposition may be: scrapers come every few seconds, and each exposition takes time from sweeps.
FRESH_SECONDS = 1.0


def serve(address: tuple[str, int], readiness: Readiness, exposition: Callable[[], bytes] | None) -> None:
    """Serve in a thread of its own; no metrics where another process shows them.

    Raises OSError when the address stays taken for two seconds.
    """
    metrics = Fresh("exposition", exposition, FRESH_SECONDS) if exposition else None

    def answer(path: str) -> Pending:
        match path:
            case "/healthz":
                return Pending(lambda: Answer(200, b'{"status":"ok"}'))
            case "/readyz":
                return readiness.pending()
            case "/metrics" if metrics:
                text = metrics.future()
                return Pending(lambda: _metrics(text), [text])
            case "/metrics":
                return Pending(lambda: Answer(404, b'{"status":"served by the worker of this replica"}'))
        return Pending(lambda: Answer(404, b'{"status":"not found"}'))

    threads.start("probes", ProbeServer(_listen(address), answer).serve)


def _metrics(text: Future[bytes]) -> Answer:
    if not text.done():
        return Answer(503, b'{"status":"timeout"}')
    if error := text.exception():
        log.error("metrics cannot be shown", error=describe(error).error)
        return Answer(500, b'{"status":"failed"}')
    return Answer(200, text.result(), CONTENT_TYPE_LATEST)


def _listen(address: tuple[str, int]) -> socket.socket:
    deadline = time.monotonic() + BIND_SECONDS
    while True:
        try:
            return listen(*address)
        except OSError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.1)
