"""Rendering that sinks share: lines for people, the JSON body for machines, cut to fit and escaped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from app.core.events import Kind, Notification

#: Tallies of a digest that are listed at most; the rest is counted.
MOST_LINES = 20


def headline(notification: Notification) -> str:
    """Return one line: severity, where, what happened, to how many."""
    event = notification.event
    where = f"{notification.deployment}: " if notification.deployment else ""
    numbers = event.metadata if len(event.tallies) <= 1 else {}  # those of several tallies are in the body
    return f"{marks(notification)}[{event.severity}] {where}{event.title}{in_brackets(numbers)}"


def marks(notification: Notification) -> str:
    """Return what a line for people begins with when it is not news: a test, or a replay."""
    test = "[test] " if notification.event.kind is Kind.TEST else ""
    return f"{test}[replayed] " if notification.replays else test


def counts(metadata: Mapping[str, int]) -> str:
    """Return numbers as `deleted=3, failed=1`."""
    return ", ".join(f"{name}={number}" for name, number in metadata.items())


def body_lines(notification: Notification) -> Iterator[str]:
    """Yield the lines below the title: the detail, and the tallies of a digest or else the numbers."""
    event = notification.event
    if notification.replays:
        yield f"replayed by hand; first told at {timestamp(notification.time)}"
    if event.detail:
        yield event.detail
    for tally in event.tallies[:MOST_LINES]:
        yield f"{tally.events} x [{tally.severity}] {tally.component}: {tally.title}{in_brackets(tally.counts)}"
    if (more := len(event.tallies) - MOST_LINES) > 0:
        yield f"+{more} more"
    if event.metadata and not event.tallies:
        yield counts(event.metadata)


def in_brackets(numbers: Mapping[str, int]) -> str:
    """Return numbers as ` (deleted=3, failed=1)`, or nothing when there are none."""
    return f" ({counts(numbers)})" if numbers else ""


def body(notification: Notification) -> dict[str, Any]:
    """Return the control plane's JSON body of an event: its order of keys, empty texts and mappings left out."""
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
    """Return JSON without blanks, in UTF-8."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def slack_escape(text: str) -> str:
    """Escape the three characters that Slack gives a meaning to."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def timestamp(moment: datetime) -> str:
    """Return a time in UTC by RFC 3339, its fraction without trailing zeros, as Go writes it."""
    text = moment.replace(microsecond=0, tzinfo=None).isoformat()  # strftime writes the year 753 in three digits
    fraction = f".{moment.microsecond:06d}".rstrip("0").rstrip(".")
    return f"{text}{fraction}Z"


def truncate(text: str, most: int) -> str:
    """Cut a text to `most` code points, the last of them an ellipsis when it was longer."""
    return text if len(text) <= most else text[: most - 1] + "…"


def one_line(text: str) -> str:
    """Replace whatever could end a line or a header by single spaces."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())
