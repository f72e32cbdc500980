"""noop: writes each event to the log, at its severity, when it is committed. Always on."""

from __future__ import annotations

import logging

import structlog

from app.core.events import Notification, Severity
from app.notify.sink import Filter, Loudness, SinkSettings, Transport, at_least, only, sink

log = structlog.get_logger("notification")

_LEVELS = {Severity.INFO: logging.INFO, Severity.WARN: logging.WARNING, Severity.ERROR: logging.ERROR}


class Noop(SinkSettings):
    """What is logged."""

    min_severity: Loudness = at_least("NOOP", "info")
    sweepers: Filter = only("NOOP")


def write_line(notification: Notification) -> None:
    """Log the event under the keys that the Go worker used."""
    event = notification.event
    fields = {
        "component": event.component,
        "title": event.title,
        "detail": event.detail or None,
        "event_id": notification.id,
    }
    log.log(_LEVELS[event.severity], "notification", **{**event.metadata, **fields})


@sink("noop", settings=Noop, paced=False, at_commit=write_line)
async def noop(notification: Notification, settings: Noop, receiver: str, transport: Transport) -> None:
    """Log the event, where one is sent all the same: by hand, or for a replica of an older release."""
    del settings, receiver, transport
    write_line(notification)
