"""The words that sinks share: lines for people, the body for machines, cut to fit and escaped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from app.core.events import Event, Kind, Notification

#: More lines than this in one message help nobody.
MOST_LINES = 20


def headline(event: Event) -> str:
    """Give one line: severity, what happened, to how many."""
    mark = "[test] " if event.kind is Kind.TEST else ""
    told = counts(event.metadata) if len(event.tallies) <= 1 else ""  # the numbers of many are told line by line
    return f"{mark}[{event.severity}] {event.title}" + (f" ({told})" if told else "")


def counts(metadata: Mapping[str, int]) -> str:
    """Give numbers as `deleted=3, failed=1`."""
    return ", ".join(f"{name}={number}" for name, number in metadata.items())


def body_lines(notification: Notification) -> Iterator[str]:
    """Give what there is to say beyond the title, line by line: the tallies of a digest, else detail and numbers."""
    event = notification.event
    if event.detail:
        yield event.detail
    for tally in event.tallies[:MOST_LINES]:
        told = counts(tally.counts)
        yield f"{tally.events} x [{tally.severity}] {tally.component}: {tally.title}" + (f" ({told})" if told else "")
    if (more := len(event.tallies) - MOST_LINES) > 0:
        yield f"+{more} more"
    if event.metadata and not event.tallies:
        yield counts(event.metadata)


def body(notification: Notification) -> dict[str, Any]:
    """Give the control plane's JSON body of an event; keys in its order, empty ones left out."""
    event = notification.event
    full: dict[str, Any] = {
        "time": timestamp(notification.time),
        "severity": event.severity.value,
        "component": event.component,
        "title": event.title,
        "detail": event.detail,
        "metadata": dict(event.metadata),
    }
    return {key: value for key, value in full.items() if value or key not in ("detail", "metadata")}


def to_json(content: Mapping[str, Any]) -> bytes:
    """Give JSON without blanks, in UTF-8."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def slack_escape(text: str) -> str:
    """Escape the three characters that Slack gives a meaning to."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def timestamp(moment: datetime) -> str:
    """Give RFC 3339 in UTC, fractions without trailing zeros, as Go writes it."""
    text = moment.strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{moment.microsecond:06d}".rstrip("0").rstrip(".")
    return f"{text}{fraction}Z"


def truncate(text: str, most: int) -> str:
    """Cut to so many code points, the last one an ellipsis when something went."""
    return text if len(text) <= most else text[: most - 1] + "…"


def one_line(text: str) -> str:
    """Replace what could end a line or a header by spaces."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())
