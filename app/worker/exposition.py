"""What /metrics shows, as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector

from app.core.role import this_process

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from app.core.shared_values import SharedValues


class Exposition:
    """Gathers the numbers of all processes of this worker, and what these collectors read."""

    def __init__(self, shared: SharedValues | None, collectors: Sequence[Collector]) -> None:
        self._shared = shared
        self._registry = CollectorRegistry()  # which asks nobody for samples before it is scraped
        if shared is None:
            self._registry.register(REGISTRY)
        else:
            MultiProcessCollector(self._registry, path=str(shared.directory))  # type: ignore[no-untyped-call]
            ProcessCollector(registry=self._registry)
        for collector in (*collectors, self):
            self._registry.register(collector)

    def __call__(self) -> bytes:
        """Return the text. Raises what a file that vanished or that is broken makes of it."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield whether the text is whole."""
        alone = this_process().processes == 1
        incomplete = not alone and (self._shared is None or self._shared.incomplete)
        yield GaugeMetricFamily(
            "worker_metrics_incomplete",
            "1 while numbers of this worker's processes are missing here: SB_WORKER_METRICS_DIR has no room.",
            value=float(incomplete),
        )
