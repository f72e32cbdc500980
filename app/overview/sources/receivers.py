"""Receivers of notifications: whether they are asked, what waits for them, and their dead letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, LiteralString

from app.notify.policy import BREAKER_FAILURES
from app.overview.model import SinkView

if TYPE_CHECKING:
    from psycopg import Cursor

#: Deliveries of one receiver and state that are counted; more count as so many.
_MOST = 10_000

_READ: LiteralString = """
WITH named AS (
    SELECT name, place FROM unnest(%(targets)s::text[]) WITH ORDINALITY AS configured (name, place)
     UNION ALL
    SELECT name, NULL FROM secrets_bridge_worker.notification_target WHERE name <> ALL (%(targets)s::text[])
)
SELECT named.name, place IS NOT NULL AS configured, now() AS now, open.number AS waiting, open.oldest, open.due_since,
       dead.number AS dead, coalesce(failures, 0) >= %(breaker_failures)s AS broken, rests_until,
       off_fingerprint IS NOT NULL AS off, off_reason, off_until,
       CASE WHEN muted_until > now() THEN muted_until END AS muted_until, muted_by, muted_reason
  FROM named
  LEFT JOIN secrets_bridge_worker.notification_target AS target USING (name)
 CROSS JOIN LATERAL (
       SELECT count(*) AS number, min(queued_at) AS oldest,
              min(due_at) FILTER (WHERE state = 'pending' AND due_at <= now()) AS due_since
         FROM (SELECT queued_at, due_at, state FROM secrets_bridge_worker.notification_delivery
                WHERE target = named.name AND state IN ('pending', 'sending')
                ORDER BY id LIMIT %(most)s) AS counted) AS open
 CROSS JOIN LATERAL (
       SELECT count(*) AS number
         FROM (SELECT FROM secrets_bridge_worker.notification_delivery
                WHERE target = named.name AND state = 'dead' LIMIT %(most)s) AS counted) AS dead
 ORDER BY place, named.name
"""


def read(cursor: Cursor[dict[str, Any]], targets: Sequence[str]) -> tuple[SinkView, ...]:
    """Return the receivers that are configured here, then others for which anything waits."""
    words = {"targets": list(targets), "breaker_failures": BREAKER_FAILURES, "most": _MOST}
    rows = cursor.execute(_READ, words).fetchall()
    return tuple(_view(row) for row in rows if row["configured"] or row["waiting"] or row["dead"])


def _view(row: Mapping[str, Any]) -> SinkView:
    state, reason, until = "on", "", None
    if row["off"]:
        state, reason, until = "off", row["off_reason"], row["off_until"]
    elif row["muted_until"] is not None:
        state, until = "muted", row["muted_until"]
        reason = ": ".join(filter(None, (row["muted_by"], row["muted_reason"])))
    elif row["broken"] and row["rests_until"] is not None and row["rests_until"] > row["now"]:
        state, reason, until = "resting", "its breaker is open", row["rests_until"]
    return SinkView(row["name"], state, reason, until, row["waiting"], row["oldest"], row["dead"], row["due_since"])
