"""What an operator asks of the outbox: the log of deliveries, replaying or purging dead letters, what is held."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, LiteralString

from psycopg.rows import dict_row

from app.core.events import Event
from app.notify import receivers
from app.notify.policy import BREAKER_FAILURES, turn

if TYPE_CHECKING:
    from psycopg import Connection


@dataclass(frozen=True)
class DeliveryFilter:
    """Which deliveries are meant; None means any. `older` and `newer` are ages, `limit` the most that are meant."""

    ids: tuple[int, ...] = ()
    target: str | None = None
    state: str | None = None
    reason: str | None = None
    component: str | None = None
    older: timedelta | None = None
    newer: timedelta | None = None
    limit: int = 100


# What an unfinished delivery waits for, in words, and until when.
_WAITS: LiteralString = """
       CASE WHEN state <> 'pending' THEN ''
            WHEN receiver.muted_at IS NOT NULL AND receiver.muted_until > now() THEN 'muted until '
                || to_char(receiver.muted_until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"')
                || ' by ' || receiver.muted_by || coalesce(': ' || nullif(receiver.muted_reason, ''), '')
            WHEN receiver.off_fingerprint IS NOT NULL THEN 'off (' || receiver.off_reason || '), probed from '
                || to_char(coalesce(receiver.off_until, now()) AT TIME ZONE 'UTC', 'HH24:MI:SS"Z"')
            WHEN receiver.rests_until > now() THEN 'left alone until '
                || to_char(receiver.rests_until AT TIME ZONE 'UTC', 'HH24:MI:SS"Z"')
            WHEN due_at <= now() THEN 'due'
            ELSE CASE WHEN attempts = 0 THEN 'held until ' ELSE 'tried again at ' END
                || to_char(due_at AT TIME ZONE 'UTC', 'HH24:MI:SS"Z"') END AS waits
"""

_FILTERED: LiteralString = """
  FROM secrets_bridge_worker.notification_delivery AS delivery
  JOIN secrets_bridge_worker.notification_event AS event ON event.id = delivery.event_id
 WHERE (%(ids)s::bigint[] = '{}' OR delivery.id = ANY (%(ids)s))
   AND (%(target)s::text IS NULL OR target = %(target)s OR target LIKE %(target)s || ':%%')
   AND (%(state)s::text IS NULL OR state = %(state)s)
   AND (%(reason)s::text IS NULL OR reason = %(reason)s)
   AND (%(component)s::text IS NULL OR component = %(component)s)
   AND (%(older)s::interval IS NULL OR created_at <= now() - %(older)s)
   AND (%(newer)s::interval IS NULL OR created_at > now() - %(newer)s)
"""

LIST: LiteralString = (
    """
SELECT delivery.id, target, state, reason, code, attempts, replays, created_at, queued_at, due_at, finished_at, digest,
       event_id::text AS event, component, severity, title, detail, metadata,
"""
    + _WAITS
    + _FILTERED.replace(
        " WHERE ",
        " LEFT JOIN secrets_bridge_worker.notification_target AS receiver ON receiver.name = delivery.target WHERE ",
        1,
    )
    + " ORDER BY delivery.id DESC LIMIT %(limit)s"
)

# Deadlocks: the receivers' rows are locked first, here as everywhere where a receiver's deliveries are changed.
LOCK_TARGETS: LiteralString = """
SELECT FROM secrets_bridge_worker.notification_target ORDER BY name FOR UPDATE
"""

# Its age counts from when it is due. At least one attempt is counted, so that it is sent by itself: its receiver may
# have seen it already, and knows it by the id that it had.
REPLAY: LiteralString = (
    """
UPDATE secrets_bridge_worker.notification_delivery AS dead_letter
   SET state = 'pending', reason = '', code = '', finished_at = NULL, queued_at = now() + chosen.turn * %(spacing)s,
       attempts = greatest(attempts, 1), replays = replays + 1,
       due_at = now() + chosen.turn * %(spacing)s
  FROM (SELECT delivery.id, row_number() OVER (ORDER BY delivery.id) - 1 AS turn
"""
    + _FILTERED
    + """ ORDER BY delivery.id LIMIT %(limit)s) AS chosen
 WHERE dead_letter.id = chosen.id AND dead_letter.state = 'dead'
RETURNING target
"""
)

PURGE: LiteralString = (
    """
UPDATE secrets_bridge_worker.notification_delivery AS dead_letter
   SET state = 'suppressed', reason = 'purged'
 WHERE dead_letter.state = 'dead' AND dead_letter.id IN (SELECT delivery.id
"""
    + _FILTERED
    + " ORDER BY delivery.id LIMIT %(limit)s)"
)

SUMS: LiteralString = """
SELECT target, state, reason, count(*) AS number FROM secrets_bridge_worker.notification_delivery
 GROUP BY target, state, reason ORDER BY target, state, reason
"""

TARGETS: LiteralString = """
SELECT name, failures >= %(breaker_failures)s AS broken, rests_until, off_fingerprint, off_reason, off_at, off_until,
       CASE WHEN muted_at IS NOT NULL AND muted_until > now() THEN muted_until END AS muted_until, muted_by,
       muted_reason, now() AS now
  FROM secrets_bridge_worker.notification_target
"""

HELD: LiteralString = """
SELECT target, max(until) AS until FROM secrets_bridge_worker.notification_hold
 WHERE until > now() AND starts_with(key, %(beginning)s) GROUP BY target
"""

OFF: LiteralString = """
SELECT name, off_reason FROM secrets_bridge_worker.notification_target
 WHERE off_fingerprint IS NOT NULL AND (name = %(sink)s OR name LIKE %(sink)s || ':%%') ORDER BY name
"""


def find(connection: Connection[Any], filters: DeliveryFilter) -> Iterator[dict[str, Any]]:
    """Yield the deliveries, newest first."""
    yield from connection.cursor(row_factory=dict_row).execute(LIST, _parameters(filters))


def replay(connection: Connection[Any], filters: DeliveryFilter, *, per_second: float) -> list[str]:
    """Make dead letters due again, at most `per_second` of them a second; return the receiver of each.

    The relay sends them.
    """
    spacing = timedelta(seconds=1 / per_second)
    with connection.transaction():
        connection.execute(LOCK_TARGETS)
        cursor = connection.cursor(row_factory=dict_row)
        cursor.execute(REPLAY, {**_parameters(filters), "spacing": spacing, "state": "dead"})
        return [row["target"] for row in cursor]


def purge(connection: Connection[Any], filters: DeliveryFilter) -> int:
    """Close dead letters for good and return how many; they stay in the sums, as suppressed."""
    with connection.transaction():
        connection.execute(LOCK_TARGETS)
        return connection.execute(PURGE, {**_parameters(filters), "state": "dead"}).rowcount


def sums(connection: Connection[Any]) -> list[dict[str, Any]]:
    """Return how many deliveries there are, by receiver, state and reason."""
    return connection.cursor(row_factory=dict_row).execute(SUMS).fetchall()


def targets(connection: Connection[Any]) -> dict[str, dict[str, Any]]:
    """Return what is known of each receiver, by name."""
    cursor = connection.cursor(row_factory=dict_row).execute(TARGETS, {"breaker_failures": BREAKER_FAILURES})
    return {row["name"]: row for row in cursor}


def held(connection: Connection[Any], event: Event) -> dict[str, Any]:
    """Return until when events such as this one are held for each receiver that was sent one a while ago."""
    beginning = f"{turn(event.component, event.kind)}{event.severity}|"
    cursor = connection.cursor(row_factory=dict_row).execute(HELD, {"beginning": beginning})
    return {row["target"]: row["until"] for row in cursor}


def enable(connection: Connection[Any], sink: str) -> list[str]:
    """Switch a sink, or one receiver of it, on again; return the receivers that were off."""
    with connection.transaction():
        cursor = connection.cursor(row_factory=dict_row)
        names = [row["name"] for row in cursor.execute(OFF, {"sink": sink})]
        return receivers.switch_on(cursor, names)


def _parameters(filters: DeliveryFilter) -> dict[str, Any]:
    return {**asdict(filters), "ids": list(filters.ids)}
