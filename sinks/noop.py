"""noop: writes each event to the log, at its severity. Always on."""

from __future__ import annotations

import logging

import structlog

from app.core.events import Note, Severity
from app.notify.sink import Filter, Loudness, SinkSettings, Wire, at_least, only, sink

log = structlog.get_logger("notification")

_LEVELS = {Severity.INFO: logging.INFO, Severity.WARN: logging.WARNING, Severity.ERROR: logging.ERROR}


class Noop(SinkSettings):
    """What is logged."""

    min_severity: Loudness = at_least("NOOP", "info")
    sweepers: Filter = only("NOOP")


@sink("noop", settings=Noop, paced=False)
async def noop(note: Note, settings: Noop, receiver: str, wire: Wire) -> None:
    """Log the event under the words that the Go worker used."""
    del settings, receiver, wire
    event = note.event
    words = {"component": event.component, "title": event.title, "detail": event.detail or None, "event_id": note.id}
    log.log(_LEVELS[event.severity], "notification", **{**event.metadata, **words})
