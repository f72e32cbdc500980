"""The relay: triggers due deliveries whose message is lost, gives up those that are too old, prunes finished ones.

One relay works for all processes that share the tables, also for receivers that it is not configured for.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from app.notify.policy import MOST_AT_ONCE
from app.notify.receivers import MUTE_AHEAD
from app.storage.postgres import only_row
from app.storage.transaction import bounded

if TYPE_CHECKING:
    from psycopg import Connection

#: Deliveries of one receiver that are triggered in one round, at most, and of one that another process is configured
#: for, if any is. There is a message for each batch of them.
MOST_TRIGGERS, MOST_FOREIGN = 500, 10
#: Events that one round looks at, at most, to delete those that are to be deleted.
MOST_PRUNED = 2_000

#: How long a message may take before it counts as lost. The second of two messages finds nothing to do.
REDELIVER_AFTER = timedelta(seconds=10)

# Nothing is triggered for a receiver that rests, is muted or is off; the first trigger after its rest is the probe, and
# one at a time are those of a receiver that is off. A time that is further ahead than it can be counts as over: the
# claim puts it right. The recursion goes from receiver to receiver and the lateral join reads the open deliveries of
# each, both by one index. What was triggered a moment ago is left out, or a backlog would fill the queue with messages
# for itself.
DUE = """
WITH RECURSIVE waiting (name) AS (
    (SELECT target FROM secrets_bridge_worker.notification_delivery
      WHERE state IN ('pending', 'sending') ORDER BY target LIMIT 1)
     UNION ALL
    SELECT (SELECT target FROM secrets_bridge_worker.notification_delivery
             WHERE state IN ('pending', 'sending') AND target > waiting.name ORDER BY target LIMIT 1)
      FROM waiting WHERE waiting.name IS NOT NULL
)
UPDATE secrets_bridge_worker.notification_delivery SET nudged_at = now() WHERE id IN (
SELECT due.id
  FROM waiting
  LEFT JOIN unnest(%(targets)s::text[], %(fingerprints)s::text[]) AS configured (name, fingerprint) USING (name)
  LEFT JOIN secrets_bridge_worker.notification_target AS target USING (name)
 CROSS JOIN LATERAL (
       SELECT id FROM secrets_bridge_worker.notification_delivery
        WHERE notification_delivery.target = waiting.name
          AND state IN ('pending', 'sending')
          AND (state = 'pending' AND due_at <= now() OR state = 'sending' AND lease_until <= now())
          AND (nudged_at < coalesce(lease_until, due_at) OR nudged_at < now() - %(redeliver_after)s
               OR nudged_at > now() + %(redeliver_after)s)
        ORDER BY id
        LIMIT CASE WHEN configured.fingerprint IS DISTINCT FROM target.off_fingerprint
                        AND configured.fingerprint IS NOT NULL THEN %(most)s::bigint
                   WHEN target.off_fingerprint IS NOT NULL THEN 1 ELSE %(foreign)s END
          FOR UPDATE SKIP LOCKED) AS due
 WHERE (target.rests_until IS NULL OR target.rests_until NOT BETWEEN now() AND now() + %(farthest)s)
   AND (target.muted_at IS NULL OR target.muted_until <= now() OR target.muted_at > now() + %(mute_ahead)s)
   AND (target.off_fingerprint IS NULL OR target.off_fingerprint <> configured.fingerprint
        OR coalesce(target.off_until, now()) NOT BETWEEN now() AND now() + %(farthest)s))
RETURNING id, target
"""

# A replay may be due at any time, and is told by having no reason for its wait.
PUT_RIGHT = """
UPDATE secrets_bridge_worker.notification_delivery AS delivery
   SET due_at = least(due_at, now()), lease_until = CASE WHEN state = 'sending' THEN now() END
  FROM (SELECT id, greatest(due_at, lease_until) - now() AS ahead
          FROM secrets_bridge_worker.notification_delivery
         WHERE (state = 'pending' AND due_at > now() + %(farthest)s AND (attempts = 0 OR reason <> '')
                OR state = 'sending' AND lease_until > now() + %(farthest)s)
         LIMIT 5000
           FOR UPDATE SKIP LOCKED) AS late
 WHERE delivery.id = late.id
RETURNING target, ahead
"""

# What waited for a mute to end is as old as that end is long ago.
GIVE_UP = """
UPDATE secrets_bridge_worker.notification_delivery
   SET state = 'dead', reason = 'gave_up', finished_at = clock_timestamp(), lease_until = NULL
 WHERE id = ANY (ARRAY(SELECT delivery.id FROM secrets_bridge_worker.notification_delivery AS delivery
                         LEFT JOIN secrets_bridge_worker.notification_target AS receiver
                                ON receiver.name = delivery.target
                        WHERE state IN ('pending', 'sending') AND (state = 'pending' OR lease_until <= now())
                          AND queued_at <= now() - %(age)s
                          AND (receiver.muted_until IS NULL OR receiver.muted_until <= now() - %(age)s)
                        ORDER BY queued_at LIMIT 5000
                          FOR UPDATE OF delivery SKIP LOCKED))
RETURNING target
"""

# Each round looks at the next events in their order, whether they stay or go: those that stay cost nothing more than
# that, however many there are.
PRUNE = """
WITH looked AS MATERIALIZED (
    SELECT id, created_at FROM secrets_bridge_worker.notification_event
     WHERE created_at < now() - %(retention)s AND (created_at, id) > (%(moment)s, %(id)s)
     ORDER BY created_at, id LIMIT %(most)s
), gone AS (
    DELETE FROM secrets_bridge_worker.notification_event AS event USING looked
     WHERE event.id = looked.id
       AND NOT EXISTS (SELECT FROM secrets_bridge_worker.notification_delivery
                        WHERE event_id = looked.id
                          AND (state IN ('pending', 'sending')
                               OR state = 'dead' AND finished_at > now() - %(dead_retention)s))
)
SELECT count(*) AS number, (array_agg(created_at ORDER BY created_at DESC, id DESC))[1] AS moment,
       (array_agg(id ORDER BY created_at DESC, id DESC))[1] AS id
  FROM looked
"""

PRUNE_DEDUP_WINDOWS = "DELETE FROM secrets_bridge_worker.notification_hold WHERE until < now() - interval '1 day'"

_START = (datetime(1970, 1, 1, tzinfo=UTC), UUID(int=0))


def due(connection: Connection[Any], targets: Sequence[tuple[str, str]], farthest: timedelta) -> list[int]:
    """Return the deliveries to send a message for, oldest first: the first of each batch of one receiver.

    `targets` are the receivers here, by name and fingerprint.
    """
    names, fingerprints = [name for name, _ in targets], [fingerprint for _, fingerprint in targets]
    query = {"targets": names, "fingerprints": fingerprints, "most": MOST_TRIGGERS, "foreign": MOST_FOREIGN}
    with bounded(connection) as cursor:
        cursor.execute(
            DUE, {**query, "redeliver_after": REDELIVER_AFTER, "farthest": farthest, "mute_ahead": MUTE_AHEAD}
        )
        found: dict[str, list[int]] = {}
        for row in cursor:
            found.setdefault(row["target"], []).append(row["id"])
    return sorted(number for ids in found.values() for number in sorted(ids)[::MOST_AT_ONCE])


def put_right(connection: Connection[Any], farthest: timedelta) -> dict[str, timedelta]:
    """Make due what waits for a time further ahead than any can be; return by how much, for each receiver."""
    ahead: dict[str, timedelta] = {}
    with bounded(connection) as cursor:
        for row in cursor.execute(PUT_RIGHT, {"farthest": farthest}):
            ahead[row["target"]] = max(row["ahead"], ahead.get(row["target"], row["ahead"]))
    return ahead


def give_up(connection: Connection[Any], age: timedelta) -> list[str]:
    """Make dead letters of deliveries that are older than this; return the receiver's name of each."""
    with bounded(connection) as cursor:
        return [row["target"] for row in cursor.execute(GIVE_UP, {"age": age})]


class Pruner:
    """Deletes what is finished and old, a piece each round, and begins again when it has come to the end."""

    def __init__(self, retention: timedelta, dead_retention: timedelta) -> None:
        self._ages = {"retention": retention, "dead_retention": dead_retention}
        self._position = _START

    def prune(self, connection: Connection[Any]) -> None:
        """Look at the next events, and delete those of which nothing is to be kept."""
        moment, event = self._position
        with bounded(connection) as cursor:
            cursor.execute(PRUNE_DEDUP_WINDOWS)
            query = {"moment": moment, "id": event, "most": MOST_PRUNED, **self._ages}
            row = only_row(cursor.execute(PRUNE, query))
        self._position = (row["moment"], row["id"]) if row["number"] == MOST_PRUNED else _START
