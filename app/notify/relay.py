"""The relay: triggers due deliveries whose message is lost, gives up those that are too old, prunes finished ones."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from psycopg.rows import dict_row

if TYPE_CHECKING:
    from psycopg import Connection

#: Triggers for one receiver in one round, at most.
MOST_TRIGGERS = 500
#: Events deleted in one round, at most.
MOST_PRUNED = 5_000

#: How long a message may take before it counts as lost. The second of two messages finds nothing to do.
REDELIVER_AFTER = timedelta(seconds=10)

# Nothing is triggered for a receiver that rests or is switched off; the first trigger after its rest is the probe. The
# lateral join reads the open deliveries of one receiver by their index. What was triggered a moment ago is left out, or
# a backlog would fill the queue with messages for itself.
DUE = """
UPDATE secrets_bridge_worker.notification_delivery SET nudged_at = now() WHERE id IN (
SELECT due.id
  FROM unnest(%(targets)s::text[], %(fingerprints)s::text[]) AS configured (name, fingerprint)
  LEFT JOIN secrets_bridge_worker.notification_target AS target USING (name)
 CROSS JOIN LATERAL (
       SELECT id FROM secrets_bridge_worker.notification_delivery
        WHERE notification_delivery.target = configured.name
          AND state IN ('pending', 'sending')
          AND (state = 'pending' AND due_at <= now() OR state = 'sending' AND lease_until <= now())
          AND (nudged_at < coalesce(lease_until, due_at) OR nudged_at < now() - %(redeliver_after)s)
        ORDER BY id LIMIT %(most)s
          FOR UPDATE SKIP LOCKED) AS due
 WHERE (target.rests_until IS NULL OR target.rests_until <= now())
   AND (target.off_fingerprint IS NULL OR target.off_fingerprint <> configured.fingerprint))
RETURNING id
"""

GIVE_UP = """
UPDATE secrets_bridge_worker.notification_delivery
   SET state = 'dead', reason = 'gave_up', finished_at = clock_timestamp(), lease_until = NULL
 WHERE id = ANY (ARRAY(SELECT id FROM secrets_bridge_worker.notification_delivery
                        WHERE (state = 'pending' OR state = 'sending' AND lease_until <= now())
                          AND queued_at <= now() - %(age)s
                        LIMIT 5000
                          FOR UPDATE SKIP LOCKED))
RETURNING target
"""

PRUNE = """
DELETE FROM secrets_bridge_worker.notification_event
 WHERE id = ANY (ARRAY(SELECT event.id FROM secrets_bridge_worker.notification_event AS event
                        WHERE created_at < now() - %(retention)s
                          AND NOT EXISTS (SELECT FROM secrets_bridge_worker.notification_delivery
                                           WHERE event_id = event.id AND state IN ('pending', 'sending', 'dead'))
                        ORDER BY created_at LIMIT %(most)s))
"""

PRUNE_DEDUP_WINDOWS = "DELETE FROM secrets_bridge_worker.notification_hold WHERE until < now() - interval '1 day'"


def due(connection: Connection[Any], targets: Sequence[tuple[str, str]]) -> list[int]:
    """Return the deliveries to trigger, oldest first, for these receivers: pairs of name and fingerprint."""
    names, fingerprints = [name for name, _ in targets], [fingerprint for _, fingerprint in targets]
    cursor = connection.cursor(row_factory=dict_row)
    query = {"targets": names, "fingerprints": fingerprints, "most": MOST_TRIGGERS}
    return sorted(row["id"] for row in cursor.execute(DUE, {**query, "redeliver_after": REDELIVER_AFTER}))


def give_up(connection: Connection[Any], age: timedelta) -> list[str]:
    """Make dead letters of deliveries that are older than this; return the receiver's name of each."""
    cursor = connection.cursor(row_factory=dict_row)
    return [row["target"] for row in cursor.execute(GIVE_UP, {"age": age})]


def prune(connection: Connection[Any], retention: timedelta) -> int:
    """Delete finished events that are older than this, unless one of their deliveries is dead; return how many."""
    connection.execute(PRUNE_DEDUP_WINDOWS)
    return connection.execute(PRUNE, {"retention": retention, "most": MOST_PRUNED}).rowcount
