"""Mutes: an operator wants nothing sent to a receiver for a while.

Deliveries are made all the same, wait, and go as one digest when it is over, as after an outage. A mute is two times in
the receiver's row, which every claim reads under its lock: all replicas see it, and it ends with nobody's help.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString

from psycopg.rows import dict_row

from app.storage.postgres import only_row

if TYPE_CHECKING:
    from psycopg import Connection

#: A mute that is forgotten ends; who wants it longer takes the sink out of the configuration.
LONGEST_MUTE = timedelta(days=30)
#: Code points of a reason, at most.
MOST_REASON = 200

# A sink's receivers here, and those that other replicas have had something for. Rows are locked in their order.
NAMES: LiteralString = """
SELECT name FROM (SELECT unnest(%(names)s::text[]) UNION SELECT name FROM secrets_bridge_worker.notification_target
                  UNION SELECT DISTINCT target FROM secrets_bridge_worker.notification_delivery
                         WHERE state IN ('pending', 'sending')) AS known (name)
 WHERE name = %(sink)s OR starts_with(name, %(sink)s || ':') ORDER BY name
"""

MUTE: LiteralString = """
INSERT INTO secrets_bridge_worker.notification_target AS target
       (name, catch_up, muted_at, muted_until, muted_by, muted_reason)
SELECT name, true, now(), now() + %(length)s, %(by)s, %(reason)s FROM unnest(%(names)s::text[]) AS chosen (name)
    ON CONFLICT (name) DO UPDATE
   SET catch_up = true, muted_at = excluded.muted_at, muted_until = excluded.muted_until,
       muted_by = excluded.muted_by, muted_reason = excluded.muted_reason
"""

# Without a beginning there is no mute, whatever the clock says later; its end is since when what waits grows old.
UNMUTE: LiteralString = """
UPDATE secrets_bridge_worker.notification_target SET muted_at = NULL, muted_until = now()
 WHERE name = ANY (%(names)s) AND muted_at IS NOT NULL AND muted_until > now()
RETURNING name
"""


def mute(  # noqa: PLR0913 - who, what, for how long and why
    connection: Connection[Any], sink: str, receivers: Iterable[str], *, length: timedelta, by: str, reason: str
) -> tuple[list[str], datetime]:
    """Mute a sink, or one receiver of it, in place of a mute that it has; `receivers` are those that exist here.

    Return the names of those that are muted, none when there is no such sink, and until when.
    """
    with connection.transaction():
        names = _names(connection, sink, receivers)
        query = {"names": names, "length": length, "by": by, "reason": reason}
        cursor = connection.cursor(row_factory=dict_row)
        cursor.execute(MUTE, query)
        until: datetime = only_row(cursor.execute("SELECT now() + %(length)s AS until", query))["until"]
        return names, until


def unmute(connection: Connection[Any], sink: str) -> list[str]:
    """End the mute of a sink, or of one receiver of it; return those that were muted. The relay wakes them."""
    with connection.transaction():
        cursor = connection.cursor(row_factory=dict_row)
        cursor.execute(UNMUTE, {"names": _names(connection, sink, ())})
        return sorted(row["name"] for row in cursor)


def _names(connection: Connection[Any], sink: str, receivers: Iterable[str]) -> list[str]:
    cursor = connection.cursor(row_factory=dict_row)
    return [row["name"] for row in cursor.execute(NAMES, {"sink": sink, "names": list(receivers)})]
