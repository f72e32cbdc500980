"""Switches traces on in a process that will not fork any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app import __version__
from app.core import logging
from app.core.errors import BootError, describe
from app.tracing import spans

if TYPE_CHECKING:
    from app.tracing.settings import TracingSettings

#: What a replica loads before it forks, where traces are on.
MODULE = "app.tracing.otel"
_SERVICE = "secrets-bridge-worker"


def start(settings: TracingSettings, role: str) -> None:
    """Send spans from now on, if that is wanted: from a process of this role. Raises BootError."""
    if not settings.enabled:
        return
    try:
        from app.tracing import otel  # noqa: PLC0415 - 15 MiB, and only where traces are on

        tracer = otel.OtelTracer(service=_SERVICE, version=__version__, role=role, headers=settings.request_headers)
    except Exception as error:  # noqa: BLE001 - the SDK raises any class, with texts that quote values
        text = f"traces: OpenTelemetry does not start ({describe(error).error}); look at the OTEL_ variables"
        raise BootError(text) from None
    spans.use(tracer)
    logging.add_trace_ids(otel.trace_id)
