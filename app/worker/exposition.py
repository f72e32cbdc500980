"""What /metrics shows, as text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector

from app.core.role import this_process, this_replica
from app.worker.replica_processes import ReplicaProcesses

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from app.core.shared_values import SharedValues


#: The bound of a bucket that is a whole number: `1`, as the Go worker writes it, where prometheus_client says `1.0`.
_WHOLE_BOUND = re.compile(rb'(?<=[{,]le=")(\d+)\.0(?=")')


class Exposition:
    """Gathers the numbers of all processes of this worker or its replica, and what these collectors read."""

    def __init__(self, shared: SharedValues | None, collectors: Sequence[Collector]) -> None:
        self._shared = shared
        self._registry = CollectorRegistry()  # which asks nobody for samples before it is scraped
        replica = this_replica()
        if shared is None:
            self._registry.register(REGISTRY)
        else:
            MultiProcessCollector(self._registry, path=str(shared.directory))  # type: ignore[no-untyped-call]
            if replica is None:
                ProcessCollector(registry=self._registry)
            elif replica.runner:
                self._registry.register(ReplicaProcesses(replica.runner))
        for collector in (*collectors, self):
            self._registry.register(collector)

    def __call__(self) -> bytes:
        """Return the text. Raises what a file that vanished or that is broken makes of it."""
        return _WHOLE_BOUND.sub(rb"\1", generate_latest(self._registry))

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield whether the text is whole."""
        alone = this_process().processes == 1 and this_replica() is None
        incomplete = not alone and (self._shared is None or self._shared.incomplete)
        yield GaugeMetricFamily(
            "worker_metrics_incomplete",
            "1 while numbers of this worker's processes are missing here: SB_WORKER_METRICS_DIR has no room.",
            value=float(incomplete),
        )
