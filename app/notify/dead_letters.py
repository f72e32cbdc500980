"""What an operator asks of the outbox: the log of deliveries, and what to do with dead ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, LiteralString

from psycopg.rows import dict_row

if TYPE_CHECKING:
    from psycopg import Connection


@dataclass(frozen=True)
class DeliveryFilter:
    """Which deliveries are meant; whatever is None does not matter. `older` and `newer` are ages."""

    ids: tuple[int, ...] = ()
    target: str | None = None
    state: str | None = None
    reason: str | None = None
    component: str | None = None
    older: timedelta | None = None
    newer: timedelta | None = None
    limit: int = 100


_CHOSEN: LiteralString = """
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
SELECT delivery.id, target, state, reason, code, attempts, created_at, queued_at, due_at, finished_at, digest,
       event_id::text AS event, component, severity, title, detail, metadata
"""
    + _CHOSEN
    + " ORDER BY delivery.id DESC LIMIT %(limit)s"
)

# The receivers' rows are taken first, as everywhere: whoever changes a receiver's deliveries holds its row.
LOCK: LiteralString = """
SELECT FROM secrets_bridge_worker.notification_target ORDER BY name FOR UPDATE
"""

# An age counts from now again. A letter that was attempted keeps to itself: what its receiver may have seen must come
# with the id that it had.
REPLAY: LiteralString = (
    """
UPDATE secrets_bridge_worker.notification_delivery AS again
   SET state = 'pending', reason = '', code = '', finished_at = NULL, queued_at = now(),
       attempts = greatest(attempts, 1), due_at = now() + chosen.turn * %(apart)s
  FROM (SELECT delivery.id, row_number() OVER (ORDER BY delivery.id) - 1 AS turn
"""
    + _CHOSEN
    + """ ORDER BY delivery.id LIMIT %(limit)s) AS chosen
 WHERE again.id = chosen.id AND again.state = 'dead'
"""
)

PURGE: LiteralString = (
    """
UPDATE secrets_bridge_worker.notification_delivery AS gone
   SET state = 'suppressed', reason = 'purged'
 WHERE gone.state = 'dead' AND gone.id IN (SELECT delivery.id
"""
    + _CHOSEN
    + " ORDER BY delivery.id LIMIT %(limit)s)"
)

SUMS: LiteralString = """
SELECT target, state, reason, count(*) AS number FROM secrets_bridge_worker.notification_delivery
 GROUP BY target, state, reason ORDER BY target, state, reason
"""

TARGETS: LiteralString = """
SELECT name, failures >= 5 AS broken, rests_until, off_fingerprint, off_reason, off_at, now() AS now
  FROM secrets_bridge_worker.notification_target
"""


def find(connection: Connection[Any], filters: DeliveryFilter) -> Iterator[dict[str, Any]]:
    """Give the deliveries, newest first."""
    yield from connection.cursor(row_factory=dict_row).execute(LIST, _parameters(filters))


def replay(connection: Connection[Any], filters: DeliveryFilter, *, per_second: float) -> int:
    """Give dead letters another life, at most so many a second, and give how many; the relay sends them."""
    apart = timedelta(seconds=1 / per_second)
    with connection.transaction():
        connection.execute(LOCK)
        return connection.execute(REPLAY, {**_parameters(filters), "apart": apart, "state": "dead"}).rowcount


def purge(connection: Connection[Any], filters: DeliveryFilter) -> int:
    """Close dead letters for good; they stay in the sums, as suppressed."""
    with connection.transaction():
        connection.execute(LOCK)
        return connection.execute(PURGE, {**_parameters(filters), "state": "dead"}).rowcount


def sums(connection: Connection[Any]) -> list[dict[str, Any]]:
    """Count deliveries by receiver, state and reason."""
    return connection.cursor(row_factory=dict_row).execute(SUMS).fetchall()


def targets(connection: Connection[Any]) -> dict[str, dict[str, Any]]:
    """Give what is known of each receiver, by name."""
    return {row["name"]: row for row in connection.cursor(row_factory=dict_row).execute(TARGETS)}


def _parameters(filters: DeliveryFilter) -> dict[str, Any]:
    return {**asdict(filters), "ids": list(filters.ids)}
