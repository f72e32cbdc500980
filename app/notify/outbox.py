"""The outbox: events written in the transaction that they tell of, and a message in Redis for each delivery.

What is committed is never lost: the message is only a trigger, and the relay finds what no message stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog
from psycopg.types.json import Json

from app.core import metrics
from app.core.errors import describe
from app.core.events import Event, Kind, Notification, Severity, Tally

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
        self._fanout = router
        self._trigger = trigger

    def write(self, cursor: Cursor[dict[str, Any]], events: Iterable[Event], *, without: str = "") -> list[int]:
        """Write events in the transaction under way; give the ids to `trigger` once it is committed."""
        return [number for event in events for number in self._write(cursor, event, without)]

    def _write(self, cursor: Cursor[dict[str, Any]], event: Event, without: str) -> list[int]:
        routed = [one for one in self._fanout.route(event) if one.target.name != without]
        for one in routed:
            if one.filtered_by:
                metrics.NOTIFIED.labels(one.target.sink.name, "suppressed").inc()
        written = write_event(cursor, event)
        targets, reasons = [one.target.name for one in routed], [one.filtered_by for one in routed]
        rows = cursor.execute(
            WRITE_DELIVERIES, {"event": written.id, "targets": targets, "reasons": reasons}
        ).fetchall()
        return [row["id"] for row in rows if row["state"] == "pending"]

    def trigger(self, deliveries: Iterable[int]) -> None:
        """Send a message for each delivery. Never raises: the relay will send those that could not be."""
        try:
            for number in deliveries:
                self._trigger(number)
        except Exception as error:  # noqa: BLE001 - a sweep is done, whether or not Redis is there to be told
            log.warning("delivery not triggered; the relay will", error=describe(error).error)


def write_event(cursor: Cursor[dict[str, Any]], event: Event) -> Notification:
    """Write one event and give it with its id and time, the same as it will be read back."""
    row = cursor.execute(
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
    ).fetchone()
    assert row is not None
    return Notification(str(row["id"]), row["created_at"].astimezone(UTC), event)


def read_notification(row: Mapping[str, Any]) -> Notification:
    """Read an event's row: `event_id`, `created_at` and the event's own columns."""
    event = Event(
        row["component"],
        Severity(row["severity"]),
        row["title"],
        row["detail"],
        row["metadata"],
        Kind(row["kind"]),
        tuple(_unpacked(packed) for packed in row["tallies"]),
    )
    moment: datetime = row["created_at"]
    return Notification(str(row["event_id"]), moment.astimezone(UTC), event)


def _packed(tally: Tally) -> dict[str, Any]:
    times = {"first": tally.first.isoformat(), "last": tally.last.isoformat()}
    return {**vars(tally), **times, "counts": dict(tally.counts)}


def _unpacked(packed: Mapping[str, Any]) -> Tally:
    times = {name: datetime.fromisoformat(packed[name]) for name in ("first", "last")}
    return Tally(**{**packed, **times, "severity": Severity(packed["severity"])})
