"""The outbox: events written in the transaction that they are about, and a message in Redis for each receiver.

What is committed is never lost: the message is only a trigger, and the relay finds deliveries that have none. A sink
that reaches nobody, which is the log, has its deliveries from the start and gets its line after the commit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

import structlog
from psycopg.types.json import Json

from app.core import metrics
from app.core.errors import describe
from app.core.events import Event, Kind, Notification, Severity, Tally
from app.storage.postgres import only_row

if TYPE_CHECKING:
    from psycopg import Cursor

    from app.notify.routing import Route, Router, Target

log = structlog.get_logger("notification")

WRITE_EVENT: LiteralString = """
INSERT INTO secrets_bridge_worker.notification_event (kind, component, severity, title, detail, metadata, tallies)
VALUES (%(kind)s, %(component)s, %(severity)s, %(title)s, %(detail)s, %(metadata)s, %(tallies)s)
RETURNING id, created_at
"""

WRITE: LiteralString = f"""
WITH event AS ({WRITE_EVENT})
INSERT INTO secrets_bridge_worker.notification_delivery (event_id, target, state, reason, attempts, finished_at)
SELECT event.id, target, state, reason, (state = 'delivered')::integer,
       CASE state WHEN 'pending' THEN NULL ELSE clock_timestamp() END
  FROM event, unnest(%(targets)s::text[], %(states)s::text[], %(reasons)s::text[]) AS routed (target, state, reason)
RETURNING id, target, state, event_id, (SELECT created_at FROM event)
"""  # noqa: S608 - the statement above

Trigger = Callable[[int], None]


class Written(NamedTuple):
    """A delivery in the open transaction, for `Outbox.trigger` once that is committed."""

    delivery: int
    target: Target
    notification: Notification


class Outbox:
    """Writes events with one delivery for each receiver, and has the receivers sent what they are due."""

    def __init__(self, router: Router, trigger: Trigger) -> None:
        self._router = router
        self._trigger = trigger

    def write(self, cursor: Cursor[dict[str, Any]], events: Iterable[Event], *, without: str = "") -> list[Written]:
        """Write events in the open transaction; return what to `trigger` once it is committed.

        `without` is the name of a receiver that gets no delivery.
        """
        return [written for event in events for written in self._write(cursor, event, without)]

    def _write(self, cursor: Cursor[dict[str, Any]], event: Event, without: str) -> Iterator[Written]:
        routes = [route for route in self._router.route(event) if route.target.name != without]
        states = [_state(route) for route in routes]
        for route, state in zip(routes, states, strict=True):
            if state == "suppressed":
                metrics.NOTIFIED.labels(route.target.sink.name, state).inc()
        query = {
            **_columns(event),
            "targets": [route.target.name for route in routes],
            "states": states,
            "reasons": [route.filtered_by for route in routes],
        }
        for row in cursor.execute(WRITE, query).fetchall():
            if row["state"] != "suppressed":
                notification = Notification(str(row["event_id"]), row["created_at"].astimezone(UTC), event)
                yield Written(row["id"], self._router.targets[row["target"]], notification)

    def trigger(self, committed: Iterable[Written]) -> None:
        """Write the log's lines, and wake each receiver that is due something. Never raises: the relay wakes the rest.

        A message names one delivery and stands for all that its receiver is due.
        """
        due: dict[str, int] = {}
        for written in committed:
            sink = written.target.sink
            if sink.at_commit is None:
                due.setdefault(written.target.name, written.delivery)
                continue
            sink.at_commit(written.notification)
            metrics.NOTIFIED.labels(sink.name, "delivered").inc()
        self.wake(due.values())

    def wake(self, deliveries: Iterable[int]) -> None:
        """Send a message for each of these deliveries and what else their receivers are due. Never raises."""
        try:
            for delivery in deliveries:
                self._trigger(delivery)
        except Exception as error:  # noqa: BLE001 - a sweep is done whether or not Redis can be reached
            log.warning("delivery not triggered; the relay will", error=describe(error).error)


def _state(route: Route) -> str:
    """Return the state that a delivery begins in."""
    if route.filtered_by:
        return "suppressed"
    return "pending" if route.target.sink.at_commit is None else "delivered"


def write_event(cursor: Cursor[dict[str, Any]], event: Event) -> Notification:
    """Write one event and return it with its id and time, the same as it is read back."""
    row = only_row(cursor.execute(WRITE_EVENT, _columns(event)))
    return Notification(str(row["id"]), row["created_at"].astimezone(UTC), event)


def _columns(event: Event) -> dict[str, Any]:
    return {
        "kind": event.kind,
        "component": event.component,
        "severity": event.severity,
        "title": event.title,
        "detail": event.detail,
        "metadata": Json(dict(event.metadata)),
        "tallies": Json([_packed(tally) for tally in event.tallies]),
    }


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
