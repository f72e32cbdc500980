"""Dramatiq's own metrics, without the server that it would fork for them: `app.probes` serves all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.core import metrics  # first: it chooses the directory that the next import reads

if TYPE_CHECKING or metrics.IN_WORKER:
    from dramatiq.middleware.prometheus import Prometheus
else:  # a scheduler or a command has no such directory, and importing this would make one
    from dramatiq.middleware import Middleware as Prometheus


class Metrics(Prometheus):
    """Counts messages. Must be the first middleware: behind one that skips, its gauges go negative."""

    @property
    def forks(self) -> list[Any]:
        """No process of its own."""
        return []
