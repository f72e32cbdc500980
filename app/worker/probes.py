"""The HTTP side of a worker: /healthz, /readyz, /metrics and a page about the deployment, on SB_WORKER_LOCAL_ADDR.

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
from app.page.site import PATHS, Shown, Site
from app.worker.fresh import Fresh
from app.worker.probe_server import Answer, Pending, ProbeServer, Request, listen
from app.worker.readiness import Readiness

log = structlog.get_logger("worker")

#: A run of this replica that was reloaded may hold the address for a moment longer.
BIND_SECONDS = 2.0
#: How old an exposition may be: scrapers come every few seconds, and each exposition takes time from sweeps.
FRESH_SECONDS = 1.0
#: How old a reading of the page may be, however many look at it, and how long a browser waits for a new one.
PAGE_FRESH_SECONDS, PAGE_SECONDS = 2.0, 3.0
_NOT_FOUND = Pending(lambda: Answer(404, b'{"status":"not found"}'))
_ELSEWHERE = Pending(lambda: Answer(404, b'{"status":"served by the worker of this replica"}'))
_READ_ONLY = Pending(lambda: Answer(405, b'{"status":"method not allowed"}', headers=(("Allow", "GET, HEAD"),)))


class Probes:
    """What is answered. No metrics where another process shows them; no page where it is off or another's."""

    def __init__(
        self,
        readiness: Readiness,
        exposition: Callable[[], bytes] | None = None,
        site: Site | None = None,
        *,
        page_elsewhere: bool = False,
    ) -> None:
        self._readiness = readiness
        self._metrics = Fresh("exposition", exposition, FRESH_SECONDS) if exposition else None
        self._site = site
        self._shown = Fresh("page", site.make, PAGE_FRESH_SECONDS) if site else None
        self._page_elsewhere = page_elsewhere

    def answer(self, request: Request) -> Pending:
        """Return the answer to a request. Of any method, as the Go worker does, but for the page."""
        match request.path:
            case "/healthz":
                return Pending(lambda: Answer(200, b'{"status":"ok"}'))
            case "/readyz":
                return self._readiness.pending()
            case "/metrics" if self._metrics:
                text = self._metrics.future()
                return Pending(lambda: _metrics(text), [text])
            case "/metrics":
                return _ELSEWHERE
            case path if path in PATHS:
                return self._page(request)
        return _NOT_FOUND

    def _page(self, request: Request) -> Pending:
        site = self._site
        if site is None or self._shown is None:
            return _ELSEWHERE if self._page_elsewhere else _NOT_FOUND
        if request.method not in ("GET", "HEAD"):
            return _READ_ONLY
        shown = self._shown.future()
        return Pending(lambda: _page(request.path, site, shown), [shown], PAGE_SECONDS)


def serve(address: tuple[str, int], probes: Probes) -> None:
    """Serve in a thread of its own. Raises OSError when the address stays taken for two seconds."""
    threads.start("probes", ProbeServer(_listen(address), probes.answer).serve)


def _metrics(text: Future[bytes]) -> Answer:
    if not text.done():
        return Answer(503, b'{"status":"timeout"}')
    if error := text.exception():
        log.error("metrics cannot be shown", error=describe(error).error)
        return Answer(500, b'{"status":"failed"}')
    return Answer(200, text.result(), CONTENT_TYPE_LATEST)


def _page(path: str, site: Site, shown: Future[Shown]) -> Answer:
    """Return a page. Never raises: that would end the thread, and with it the process."""
    try:
        body, content_type, status, headers = site.reply(path, shown.result() if shown.done() else site.late())
    except Exception as error:  # noqa: BLE001 - see above
        log.error("page cannot be shown", error=describe(error).error)
        return Answer(500, b'{"status":"failed"}')
    return Answer(status, body, content_type, headers)


def _listen(address: tuple[str, int]) -> socket.socket:
    deadline = time.monotonic() + BIND_SECONDS
    while True:
        try:
            return listen(*address)
        except OSError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.1)
