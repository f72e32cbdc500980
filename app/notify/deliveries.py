"""Deliveries in PostgreSQL: claimed under a lease, settled by how the attempt ended.

What is decided about a receiver (what goes together, what waits, its breaker) is decided under its row in
`notification_target`, by one process at a time; two receivers never wait for each other, and no process locks the row
during an attempt. Where there is nothing to decide, for a healthy receiver that is sent every event by itself, one
statement on the delivery's own row is enough.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg.rows import dict_row

from app.core.errors import Fault, SinkRejected, SinkUnavailable
from app.core.events import Notification
from app.notify.digest import digest
from app.notify.outbox import read_notification, write_event
from app.notify.policy import BREAKER_FAILURES, Decision, Health, Policy, Waiting, backoff, cooldown, decide
from app.storage.postgres import only_row

if TYPE_CHECKING:
    from psycopg import Connection, Cursor

    from app.notify.routing import Target
    from app.notify.settings import NotificationSettings

#: Unfinished deliveries of one receiver that are read at once, and so the most events in one digest.
MOST_WAITING = 20_000

PEEK = """
SELECT target FROM secrets_bridge_worker.notification_delivery
 WHERE id = %(id)s AND (state = 'pending' AND due_at <= now() OR state = 'sending' AND lease_until <= now())
"""

CLAIM_ALONE = """
UPDATE secrets_bridge_worker.notification_delivery AS delivery
   SET state = 'sending', attempts = attempts + 1, lease_until = now() + %(lease)s
  FROM secrets_bridge_worker.notification_event AS event
 WHERE delivery.id = %(id)s AND event.id = event_id
   AND (state = 'pending' AND due_at <= now() OR state = 'sending' AND lease_until <= now())
   AND NOT EXISTS (SELECT FROM secrets_bridge_worker.notification_target
                    WHERE name = target AND (failures >= %(breaker_failures)s OR rests_until > now()
                                             OR off_fingerprint IS NOT NULL))
RETURNING attempts, queued_at, event_id, created_at, kind, component, severity, title, detail, metadata, tallies
"""

ADD_TARGET = """
INSERT INTO secrets_bridge_worker.notification_target AS target (name) VALUES (%(name)s)
    ON CONFLICT (name) DO NOTHING
"""
LOCK_TARGET = """
SELECT *, now() AS now FROM secrets_bridge_worker.notification_target WHERE name = %(name)s FOR UPDATE
"""

WAITING = """
SELECT delivery.id, delivery.attempts, delivery.queued_at,
       state = 'pending' AND due_at <= now() OR state = 'sending' AND lease_until <= now() AS due,
       state = 'sending' AND lease_until > now() AS busy, event.id AS event_id, event.created_at, event.kind,
       event.component, event.severity, event.title, event.detail, event.metadata, event.tallies
  FROM secrets_bridge_worker.notification_delivery AS delivery
  JOIN secrets_bridge_worker.notification_event AS event ON event.id = delivery.event_id
 WHERE target = %(target)s AND state IN ('pending', 'sending') AND (%(id)s::bigint IS NULL OR delivery.id = %(id)s)
 ORDER BY delivery.id
 LIMIT %(most)s
"""

DEDUP_WINDOWS = """
SELECT key, until FROM secrets_bridge_worker.notification_hold WHERE target = %(target)s AND until > now()
"""
POSTPONE = """
UPDATE secrets_bridge_worker.notification_delivery SET due_at = %(until)s
 WHERE id = ANY (%(ids)s) AND state = 'pending'
"""
OPEN_DEDUP_WINDOWS = """
INSERT INTO secrets_bridge_worker.notification_hold (target, key, until)
SELECT %(target)s, key, now() + %(repeat)s FROM unnest(%(keys)s::text[]) AS sent (key)
    ON CONFLICT (target, key) DO UPDATE SET until = excluded.until
"""

CLAIM = """
UPDATE secrets_bridge_worker.notification_delivery
   SET state = 'sending', attempts = attempts + 1, lease_until = now() + %(lease)s
 WHERE id = %(id)s AND (state = 'pending' OR state = 'sending' AND lease_until <= now())
RETURNING attempts, queued_at
"""
ADD_DIGEST = """
INSERT INTO secrets_bridge_worker.notification_delivery (event_id, target, state, attempts, queued_at, lease_until)
VALUES (%(event)s, %(target)s, 'sending', 1, %(queued_at)s, now() + %(lease)s)
RETURNING id, queued_at
"""
DIGESTED = """
UPDATE secrets_bridge_worker.notification_delivery
   SET state = 'digested', digest = %(digest)s, finished_at = clock_timestamp(), lease_until = NULL
 WHERE id = ANY (%(ids)s)
"""
RESERVE_SLOT = """
UPDATE secrets_bridge_worker.notification_target
   SET paced_until = coalesce(%(paced_until)s, paced_until),
       probe_until = CASE WHEN %(probing)s THEN now() + %(lease)s ELSE probe_until END,
       catch_up = catch_up AND NOT %(caught_up)s
 WHERE name = %(target)s
"""

# The usual end, in one statement: delivered, to a receiver that was healthy before.
DELIVERED = """
WITH settled AS (
    UPDATE secrets_bridge_worker.notification_delivery
       SET state = 'delivered', reason = '', code = '', lease_until = NULL, finished_at = clock_timestamp()
     WHERE id = %(id)s AND state = 'sending' AND attempts = %(attempt)s
 RETURNING event_id, queued_at
)
SELECT extract(epoch FROM clock_timestamp() - queued_at)::float8 AS age,
       EXISTS (SELECT FROM secrets_bridge_worker.notification_delivery AS sibling
                WHERE sibling.event_id = settled.event_id AND state = 'dead') AS any_dead,
       NOT EXISTS (SELECT FROM secrets_bridge_worker.notification_target
                    WHERE name = %(target)s AND (failures > 0 OR trips > 0 OR rests_until IS NOT NULL)) AS healthy,
       EXISTS (SELECT FROM secrets_bridge_worker.notification_target
                WHERE name = %(target)s AND (failures >= %(breaker_failures)s OR rests_until IS NOT NULL)) AS recovered,
       event_id
  FROM settled
"""

SETTLE = """
UPDATE secrets_bridge_worker.notification_delivery
   SET state = %(state)s, reason = %(reason)s, code = %(code)s, lease_until = NULL,
       due_at = CASE WHEN %(state)s = 'pending' THEN now() + %(wait)s ELSE due_at END,
       finished_at = CASE WHEN %(state)s = 'pending' THEN NULL ELSE clock_timestamp() END
 WHERE id = %(id)s AND state = 'sending' AND attempts = %(attempt)s
RETURNING event_id
"""
RESET_BREAKER = """
UPDATE secrets_bridge_worker.notification_target
   SET failures = 0, trips = 0, rests_until = NULL, probe_until = NULL
 WHERE name = %(target)s
"""
COUNT_FAILURE = """
UPDATE secrets_bridge_worker.notification_target
   SET failures = failures + %(failures)s, trips = %(trips)s, probe_until = NULL,
       rests_until = CASE WHEN %(rest)s::interval IS NULL THEN rests_until
                          ELSE greatest(rests_until, now() + %(rest)s) END,
       catch_up = catch_up OR %(broken)s
 WHERE name = %(target)s
"""
SWITCH_OFF = """
UPDATE secrets_bridge_worker.notification_target
   SET off_fingerprint = %(fingerprint)s, off_reason = %(reason)s, off_at = now(), catch_up = true, probe_until = NULL
 WHERE name = %(target)s
"""
SWITCH_ON = """
UPDATE secrets_bridge_worker.notification_target
   SET off_fingerprint = NULL, off_reason = '', off_at = NULL, failures = 0, trips = 0, rests_until = NULL,
       probe_until = NULL
 WHERE name = %(target)s
"""
EXPEDITE_RETRIES = """
UPDATE secrets_bridge_worker.notification_delivery SET due_at = now()
 WHERE target = %(target)s AND state = 'pending' AND attempts > 0
"""
NEXT_DUE = """
SELECT id FROM secrets_bridge_worker.notification_delivery
 WHERE target = %(target)s AND state = 'pending' AND due_at <= now() ORDER BY id LIMIT 10
"""
SIBLINGS = """
SELECT target, state, reason, code FROM secrets_bridge_worker.notification_delivery
 WHERE event_id = %(event)s ORDER BY target
"""


class ClaimedDelivery(NamedTuple):
    """A delivery that only this process may attempt until its lease ends."""

    id: int
    target: Target
    notification: Notification
    attempt: int
    queued_at: datetime

    @property
    def events(self) -> int:
        """How many events it carries: one, or those of a digest."""
        return sum(tally.events for tally in self.notification.event.tallies) or 1


class DeliveryOutcome(NamedTuple):
    """How an attempt was settled: the delivery's new state, and what follows from it."""

    state: str
    reason: str = ""
    wait: timedelta = timedelta(0)
    #: The receiver's other deliveries that are due now.
    follow: tuple[int, ...] = ()
    #: How long the receiver rests, when this opened its breaker.
    opened: timedelta | None = None
    recovered: bool = False
    switched_off: bool = False
    #: How the event ended in every sink, when this was the last of its deliveries and one of them is dead.
    final_states: tuple[str, ...] = ()
    #: Seconds since the delivery was queued.
    age: float = 0.0


@dataclass(frozen=True)
class Deliveries:
    """Claims and settles deliveries for the receivers that this process is configured for."""

    targets: Mapping[str, Target]
    settings: NotificationSettings

    def claim(self, connection: Connection[Any], delivery: int) -> ClaimedDelivery | None:
        """Claim what the receiver of this delivery is to be sent now; None when that is nothing."""
        cursor = connection.cursor(row_factory=dict_row)
        row = cursor.execute(PEEK, {"id": delivery}).fetchone()
        target = self.targets.get(row["target"]) if row else None
        if target is None:
            return None
        policy = self.policy(target)
        if not (policy.digests or policy.pace or policy.grouped):
            query = {"id": delivery, "lease": self.settings.lease, "breaker_failures": BREAKER_FAILURES}
            row = cursor.execute(CLAIM_ALONE, query).fetchone()
            if row is not None:
                return ClaimedDelivery(delivery, target, read_notification(row), row["attempts"], row["queued_at"])
        with connection.transaction():
            row = _lock(cursor, target.name)
            if row["off_fingerprint"] is not None:
                if row["off_fingerprint"] == target.fingerprint:
                    return None
                cursor.execute(SWITCH_ON, {"target": target.name})
                row = _lock(cursor, target.name)
            health = _health(row)
            if health.closed_to_all(row["now"]):
                return None
            return self._claim(cursor, delivery, target, health, row["now"])

    def _claim(
        self, cursor: Cursor[dict[str, Any]], delivery: int, target: Target, health: Health, now: datetime
    ) -> ClaimedDelivery | None:
        policy = self.policy(target)
        alone = not (policy.digests or policy.grouped or health.broken)
        query = {"target": target.name, "id": delivery if alone else None, "most": MOST_WAITING}
        rows = cursor.execute(WAITING, query).fetchall()
        waiting = [_waiting(row, target) for row in rows]
        windows = {}
        if policy.repeat:
            windows = {row["key"]: row["until"] for row in cursor.execute(DEDUP_WINDOWS, {"target": target.name})}
        decision = decide(delivery, waiting, health, policy, windows, now)
        for until, ids in decision.postpone.items():
            cursor.execute(POSTPONE, {"ids": ids, "until": until})
        if not decision.send:
            return None
        claimed = self._claim_decided(cursor, target, decision, {row["id"]: row["queued_at"] for row in rows})
        caught_up = len(decision.send) > 1 or not any(other.due and not other.attempts for other in waiting)
        cursor.execute(
            RESERVE_SLOT,
            {
                "target": target.name,
                "paced_until": decision.paced_until,
                "probing": health.broken,
                "lease": self.settings.lease,
                "caught_up": caught_up,
            },
        )
        if decision.dedup_keys:
            keys = list(decision.dedup_keys)
            cursor.execute(OPEN_DEDUP_WINDOWS, {"target": target.name, "keys": keys, "repeat": policy.repeat})
        return claimed

    def _claim_decided(
        self, cursor: Cursor[dict[str, Any]], target: Target, decision: Decision, queued: Mapping[int, datetime]
    ) -> ClaimedDelivery | None:
        lease = self.settings.lease
        if len(decision.send) == 1:
            (delivery,) = decision.send
            row = cursor.execute(CLAIM, {"id": delivery.id, "lease": lease}).fetchone()
            if row is None:  # another process has claimed it by CLAIM_ALONE meanwhile
                return None
            return ClaimedDelivery(delivery.id, target, delivery.notification, row["attempts"], row["queued_at"])
        oldest = min(queued[delivery.id] for delivery in decision.send)
        notification = write_event(cursor, digest([delivery.notification for delivery in decision.send]))
        added = {"event": notification.id, "target": target.name, "queued_at": oldest, "lease": lease}
        row = only_row(cursor.execute(ADD_DIGEST, added))
        cursor.execute(DIGESTED, {"digest": row["id"], "ids": [delivery.id for delivery in decision.send]})
        return ClaimedDelivery(row["id"], target, notification, 1, oldest)

    def policy(self, target: Target) -> Policy:
        """Return how a receiver is treated."""
        settings, sink = self.settings, target.sink
        if not sink.paced:
            return Policy(timedelta(0), timedelta(0), 1, 0, sink.grouped)
        return Policy(settings.repeat, settings.pace, settings.burst, settings.digest_over, sink.grouped)

    def settle(
        self, connection: Connection[Any], claimed: ClaimedDelivery, error: SinkRejected | SinkUnavailable | None
    ) -> DeliveryOutcome | None:
        """Record how the attempt ended; None when its lease had ended and another process decides."""
        if error is None:
            return self._settle_delivered(connection, claimed)
        return self._settle_failed(connection, claimed, error)

    def _settle_delivered(self, connection: Connection[Any], claimed: ClaimedDelivery) -> DeliveryOutcome | None:
        cursor, name = connection.cursor(row_factory=dict_row), claimed.target.name
        query = {"id": claimed.id, "attempt": claimed.attempt, "target": name, "breaker_failures": BREAKER_FAILURES}
        row = cursor.execute(DELIVERED, query).fetchone()
        if row is None:
            return None
        final_states = _final_states(cursor, row["event_id"]) if row["any_dead"] else ()
        outcome = DeliveryOutcome("delivered", age=row["age"], final_states=final_states)
        if row["healthy"] and not claimed.target.sink.grouped:
            return outcome
        with connection.transaction():
            _lock(cursor, name)
            cursor.execute(RESET_BREAKER, {"target": name})
            if row["recovered"]:
                cursor.execute(EXPEDITE_RETRIES, {"target": name})
            follow = _next_due(cursor, name)
        return outcome._replace(recovered=row["recovered"], follow=follow)

    def _settle_failed(
        self, connection: Connection[Any], claimed: ClaimedDelivery, error: SinkRejected | SinkUnavailable
    ) -> DeliveryOutcome | None:
        cursor, name = connection.cursor(row_factory=dict_row), claimed.target.name
        with connection.transaction():
            row = _lock(cursor, name)
            health = _health(row)
            outcome = self._outcome(claimed, error, health, row["now"])
            settled = cursor.execute(
                SETTLE,
                {
                    "id": claimed.id,
                    "attempt": claimed.attempt,
                    "state": outcome.state,
                    "reason": outcome.reason,
                    "code": error.code,
                    "wait": outcome.wait,
                },
            ).fetchone()
            if settled is None:
                return None
            self._update_health(cursor, claimed, error, health, outcome)
            if outcome.recovered:
                cursor.execute(EXPEDITE_RETRIES, {"target": name})
            if outcome.recovered or (claimed.target.sink.grouped and outcome.state != "pending"):
                outcome = outcome._replace(follow=_next_due(cursor, name))
            if outcome.state != "pending":
                outcome = outcome._replace(final_states=_final_states(cursor, settled["event_id"]))
        return outcome

    def _outcome(
        self, claimed: ClaimedDelivery, error: SinkRejected | SinkUnavailable, health: Health, now: datetime
    ) -> DeliveryOutcome:
        age = now - claimed.queued_at
        seconds = age.total_seconds()
        if isinstance(error, SinkRejected):
            return DeliveryOutcome("dead", error.fault, switched_off=error.off, recovered=health.broken, age=seconds)
        wait = backoff(claimed.attempt, random.random())  # noqa: S311 - not a secret
        if error.retry_after is not None:
            wait = max(wait, timedelta(seconds=error.retry_after))
        limited = error.fault is Fault.RATE_LIMITED
        # Attempts that were under way when the breaker opened do not open it further.
        broken = not limited and not health.resting(now) and health.failures + 1 >= BREAKER_FAILURES
        opened = cooldown(health.trips + 1, self.settings.cooldown) if broken else None
        if age >= self.settings.give_up:
            return DeliveryOutcome("dead", "gave_up", opened=opened, age=seconds)
        return DeliveryOutcome("pending", error.fault, wait, opened=opened, age=seconds)

    def _update_health(
        self,
        cursor: Cursor[dict[str, Any]],
        claimed: ClaimedDelivery,
        error: SinkRejected | SinkUnavailable,
        health: Health,
        outcome: DeliveryOutcome,
    ) -> None:
        name = claimed.target.name
        if not isinstance(error, SinkUnavailable):
            cursor.execute(RESET_BREAKER, {"target": name})
            if outcome.switched_off:
                fingerprint = claimed.target.fingerprint
                cursor.execute(SWITCH_OFF, {"target": name, "fingerprint": fingerprint, "reason": outcome.reason})
            return
        limited = error.fault is Fault.RATE_LIMITED
        cursor.execute(
            COUNT_FAILURE,
            {
                "target": name,
                "failures": int(not limited),
                "trips": health.trips + 1 if outcome.opened else health.trips,
                "rest": outcome.wait if limited else outcome.opened,
                "broken": outcome.opened is not None,
            },
        )


def _lock(cursor: Cursor[dict[str, Any]], name: str) -> dict[str, Any]:
    row = cursor.execute(LOCK_TARGET, {"name": name}).fetchone()
    if row is None:
        cursor.execute(ADD_TARGET, {"name": name})
        row = only_row(cursor.execute(LOCK_TARGET, {"name": name}))
    return row


def _health(row: Mapping[str, Any]) -> Health:
    return Health(
        row["failures"], row["trips"], row["rests_until"], row["probe_until"], row["catch_up"], row["paced_until"]
    )


def _waiting(row: Mapping[str, Any], target: Target) -> Waiting:
    notification = read_notification(row)
    group = target.sink.group(notification.event)
    return Waiting(row["id"], notification, row["attempts"], row["due"], row["busy"], group)


def _next_due(cursor: Cursor[dict[str, Any]], name: str) -> tuple[int, ...]:
    return tuple(row["id"] for row in cursor.execute(NEXT_DUE, {"target": name}))


def _final_states(cursor: Cursor[dict[str, Any]], event: object) -> tuple[str, ...]:
    """Return how an event ended in every sink, if it is dead in one of them; empty while it has not ended in all."""
    rows = cursor.execute(SIBLINGS, {"event": event}).fetchall()
    states = {row["state"] for row in rows}
    if "dead" not in states or states & {"pending", "sending"}:
        return ()
    return tuple(f"{row['target']}: {row['state']} {row['reason']} {row['code']}".rstrip() for row in rows)
