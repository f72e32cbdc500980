"""noop: writes each event to the log, at its severity. Always on."""

from __future__ import annotations

import logging

import structlog

from app.events import Event, Severity, sink

log = structlog.get_logger("notification")

_LEVELS = {Severity.INFO: logging.INFO, Severity.WARN: logging.WARNING, Severity.ERROR: logging.ERROR}


@sink("noop")
def noop(event: Event) -> None:
    """Log the event under the words that the Go worker used."""
    words = {"component": event.component, "title": event.title, "detail": event.detail or None}
    log.log(_LEVELS[event.severity], "notification", **words, **event.metadata)
