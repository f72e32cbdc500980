"""The page as it is served, and a browser that looks at it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from actors import SWEEPERS
from app.core import config
from app.overview.model import Overview
from app.page.site import Site
from app.worker.loading import groups
from app.worker.probe_server import ProbeServer, listen
from app.worker.probes import Probes
from app.worker.readiness import Readiness
from sinks import SINKS
from tests.page.browser import Browser

#: Serves the page of what is read, and returns its address.
Serve = Callable[[Callable[[], Overview]], AbstractContextManager[str]]


@contextmanager
def answering(probes: Probes) -> Iterator[str]:
    """Serve in a thread until the body has run, and yield the address."""
    with listen("127.0.0.1", 0) as listener:
        server, over = ProbeServer(listener, probes.answer), threading.Event()

        def serve() -> None:
            while not over.is_set():
                server.turn(0.02)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            thread.join()
            server.close()


def probes(read: Callable[[], Overview]) -> Probes:
    """Return what a worker answers that shows these readings."""
    rows = list(config.rows(*groups(SWEEPERS, SINKS)))
    return Probes(Readiness({}), site=Site("prod-eu", rows, read, lambda: "ready"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Return a browser; skip the test where there is none."""
    with Browser() as browser:
        yield browser
