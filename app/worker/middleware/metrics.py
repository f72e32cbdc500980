"""Dramatiq's own metrics, without the server that it would fork for them: `app.worker.probes` serves all of them."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any

from dramatiq.middleware import Middleware
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from app.core.role import this_process

if TYPE_CHECKING:
    from dramatiq import Broker, Worker

    from app.core.shared_values import SharedValues


def dramatiq_metrics(shared: SharedValues | None) -> Middleware:
    """Return the middleware that counts messages; in a scheduler or a command, whose are not scraped, an idle one.

    Must be the first middleware: behind one that skips, its gauges go negative.
    """
    if not this_process().works:
        return Middleware()
    # Dramatiq's module makes a directory for files when it is imported; none is needed, and the root is always there.
    before, tempfile.tempdir = tempfile.tempdir, os.sep
    os.environ["dramatiq_prom_db"] = os.sep  # noqa: SIM112 - Dramatiq's name for it
    from dramatiq.middleware.prometheus import Prometheus  # noqa: PLC0415 - see above

    tempfile.tempdir = before

    class Metrics(Prometheus):
        @property
        def forks(self) -> list[Any]:
            return []

        def after_process_boot(self, broker: Broker) -> None:
            super().after_process_boot(broker)  # type: ignore[no-untyped-call]
            for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
                os.environ.pop(name, None)  # not for the processes that we start
            for metric in vars(self).values():
                if isinstance(metric, Counter | Gauge | Histogram):
                    REGISTRY.register(metric)

        def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
            if shared:
                shared.close()

    return Metrics()
