"""The relay: re-triggers what is due and no message in Redis stands for, ends what is too old, prunes what is done."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from psycopg.rows import dict_row

if TYPE_CHECKING:
    from psycopg import Connection

#: Triggers for one receiver in one round. A trigger too many finds nothing to do.
MOST_TRIGGERS = 500
#: Rows deleted in one round.
MOST_PRUNED = 5_000

#: How long a message may take before it counts as lost; whoever is late and gets two of them finds nothing to do.
REDELIVER_AFTER = timedelta(seconds=10)

# A receiver that rests or is switched off is not asked for; the first trigger after its rest is the probe. The lateral
# join reads the open deliveries of one receiver by their index. What was nudged is left in peace for a while, else a
# backlog would fill the queue with messages for itself.
DUE = """
UPDATE secrets_bridge_worker.notification_delivery SET nudged_at = now() WHERE id IN (
SELECT due.id
  FROM unnest(%(targets)s::text[], %(fingerprints)s::text[]) AS here (name, fingerprint)
  LEFT JOIN secrets_bridge_worker.notification_target AS target USING (name)
 CROSS JOIN LATERAL (
       SELECT id FROM secrets_bridge_worker.notification_delivery
        WHERE notification_delivery.target = here.name
          AND state IN ('pending', 'sending')
          AND (state = 'pending' AND due_at <= now() OR state = 'sending' AND lease_until <= now())
          AND (nudged_at < coalesce(lease_until, due_at) OR nudged_at < now() - %(redeliver_after)s)
        ORDER BY id LIMIT %(most)s
          FOR UPDATE SKIP LOCKED) AS due
 WHERE (target.rests_until IS NULL OR target.rests_until <= now())
   AND (target.off_fingerprint IS NULL OR target.off_fingerprint <> here.fingerprint))
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

PRUNE_HOLDS = "DELETE FROM secrets_bridge_worker.notification_hold WHERE until < now() - interval '1 day'"


def due(connection: Connection[Any], targets: Sequence[tuple[str, str]]) -> list[int]:
    """Give the deliveries to trigger for these receivers, each a name and a fingerprint, oldest first."""
    names, fingerprints = [name for name, _ in targets], [fingerprint for _, fingerprint in targets]
    cursor = connection.cursor(row_factory=dict_row)
    query = {"targets": names, "fingerprints": fingerprints, "most": MOST_TRIGGERS}
    return sorted(row["id"] for row in cursor.execute(DUE, {**query, "redeliver_after": REDELIVER_AFTER}))


def give_up(connection: Connection[Any], age: timedelta) -> list[str]:
    """End what waited longer than this, and give the receiver of each."""
    cursor = connection.cursor(row_factory=dict_row)
    return [row["target"] for row in cursor.execute(GIVE_UP, {"age": age})]


def prune(connection: Connection[Any], retention: timedelta) -> int:
    """Delete what ended longer ago than this, dead letters excepted, and give how many events that was."""
    connection.execute(PRUNE_HOLDS)
    return connection.execute(PRUNE, {"retention": retention, "most": MOST_PRUNED}).rowcount
