"""The outbox: events written in the transaction that they are about, and a message in Redis for each delivery.

What is committed is never lost: the message is only a trigger, and the relay finds deliveries that have none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog
from psycopg.types.json import Json

from app.core import metrics
from app.core.errors import describe
from app.core.events import Event, Kind, Notification, Severity, Tally
from app.storage.postgres import only_row

if TYPE_CHECKING:
    from psycopg import Cursor

    from app.notify.routing import Router

log = structlog.get_logger("notification")

WRITE_EVENT = """
INSERT INTO secrets_bridge_worker.notification_event (kind, component, severity, title, detail, metadata, tallies)
VALUES (%(kind)s, %(component)s, %(severity)s, %(title)s, %(detail)s, %(metadata)s, %(tallies)s)
RETURNING id, created_at
"""

WRITE_DELIVERIES = """
INSERT INTO secrets_bridge_worker.notification_delivery (event_id, target, state, reason, finished_at)
SELECT %(event)s, target, CASE reason WHEN '' THEN 'pending' ELSE 'suppressed' END, reason,
       CASE reason WHEN '' THEN NULL ELSE clock_timestamp() END
  FROM unnest(%(targets)s::text[], %(reasons)s::text[]) AS routed (target, reason)
RETURNING id, state
"""

Trigger = Callable[[int], None]


class Outbox:
    """Writes events with one delivery for each receiver, and triggers those deliveries."""

    def __init__(self, router: Router, trigger: Trigger) -> None:
        self._router = router
        self._trigger = trigger

    def write(self, cursor: Cursor[dict[str, Any]], events: Iterable[Event], *, without: str = "") -> list[int]:
        """Write events in the open transaction; return the deliveries to `trigger` once it is committed.

        `without` is the name of a receiver that gets no delivery.
        """
        return [delivery for event in events for delivery in self._write(cursor, event, without)]

    def _write(self, cursor: Cursor[dict[str, Any]], event: Event, without: str) -> list[int]:
        routes = [route for route in self._router.route(event) if route.target.name != without]
        for route in routes:
            if route.filtered_by:
                metrics.NOTIFIED.labels(route.target.sink.name, "suppressed").inc()
        query = {
            "event": write_event(cursor, event).id,
            "targets": [route.target.name for route in routes],
            "reasons": [route.filtered_by for route in routes],
        }
        return [row["id"] for row in cursor.execute(WRITE_DELIVERIES, query) if row["state"] == "pending"]

    def trigger(self, deliveries: Iterable[int]) -> None:
        """Send a message for each delivery. Never raises: the relay sends those that could not be sent."""
        try:
            for delivery in deliveries:
                self._trigger(delivery)
        except Exception as error:  # noqa: BLE001 - a sweep is done whether or not Redis can be reached
            log.warning("delivery not triggered; the relay will", error=describe(error).error)


def write_event(cursor: Cursor[dict[str, Any]], event: Event) -> Notification:
    """Write one event and return it with its id and time, the same as it is read back."""
    written = cursor.execute(
        WRITE_EVENT,
        {
            "kind": event.kind,
            "component": event.component,
            "severity": event.severity,
            "title": event.title,
            "detail": event.detail,
            "metadata": Json(dict(event.metadata)),
            "tallies": Json([_packed(tally) for tally in event.tallies]),
        },
    )
    row = only_row(written)
    return Notification(str(row["id"]), row["created_at"].astimezone(UTC), event)


class Unreadable(Exception):
    """An event that this release cannot read: a newer one, or somebody by hand, has written it."""


def read_notification(row: Mapping[str, Any]) -> Notification:
    """Return the notification of a row with `event_id`, `created_at` and the event's own columns, its JSON as text.

    Raises Unreadable.
    """
    try:
        event = Event(
            row["component"],
            Severity(row["severity"]),
            row["title"],
            row["detail"],
            _counts(json.loads(row["metadata"])),
            Kind(row["kind"]),
            tuple(_unpacked(packed) for packed in json.loads(row["tallies"])),
        )
        moment: datetime = row["created_at"]
        return Notification(str(row["event_id"]), moment.astimezone(UTC), event)
    except Exception:  # noqa: BLE001 - JSON can be wrong in any way
        raise Unreadable from None


def read_tally(row: Mapping[str, Any]) -> Tally:
    """Return the tally of a row with the columns of that name."""
    first, last = row["first"].astimezone(UTC), row["last"].astimezone(UTC)
    return Tally(
        row["component"], Severity(row["severity"]), row["title"], row["events"], first, last, dict(row["counts"])
    )


def _packed(tally: Tally) -> dict[str, Any]:
    times = {"first": tally.first.isoformat(), "last": tally.last.isoformat()}
    return {**vars(tally), **times, "counts": dict(tally.counts)}


def _unpacked(packed: Mapping[str, Any]) -> Tally:
    first, last = (datetime.fromisoformat(packed[name]) for name in ("first", "last"))
    counts, severity = _counts(packed["counts"]), Severity(packed["severity"])
    return Tally(str(packed["component"]), severity, str(packed["title"]), int(packed["events"]), first, last, counts)


def _counts(numbers: Any) -> dict[str, int]:
    """Return what are names and whole numbers. Raises TypeError for anything else."""
    if not isinstance(numbers, dict) or not all(type(number) is int for number in numbers.values()):
        raise TypeError
    return numbers
