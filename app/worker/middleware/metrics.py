"""Dramatiq's own metrics, without the server that it would fork for them: `app.worker.probes` serves all of them."""

from __future__ import annotations

from typing import Any

from dramatiq.middleware import Middleware

from app.core.role import this_process


def dramatiq_metrics() -> Middleware:
    """Return the middleware that counts messages; in a scheduler or a command, whose are not scraped, an idle one.

    Must be the first middleware: behind one that skips, its gauges go negative. Call metrics.prepare() before:
    Dramatiq's module takes its directory when it is imported, and makes one that is not there, for all to read.
    """
    if not this_process().works:
        return Middleware()
    from dramatiq.middleware.prometheus import Prometheus  # noqa: PLC0415 - see above

    class Metrics(Prometheus):
        @property
        def forks(self) -> list[Any]:
            return []

    return Metrics()
