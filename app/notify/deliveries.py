"""Deliveries in PostgreSQL: claimed under a lease, settled by how the attempt ended.

What is decided about a receiver (what goes together, what waits, its breaker) is decided under its row in
`notification_target`, by one process at a time; two receivers never wait for each other, and no process locks the row
during an attempt. Where there is nothing to decide, for a healthy receiver that is sent every event by itself, one
statement on the delivery's own row is enough.

A delivery that cannot be read, such as one of a newer release, becomes a dead letter when it is met: it would stand in
the way of its receiver's others.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import structlog

from app.core import metrics
from app.core.errors import Fault, SinkRejected, SinkUnavailable
from app.core.events import NOTIFICATIONS, Event, Kind, Notification, Severity
from app.notify import receivers
from app.notify.digest import digest
from app.notify.outbox import Unreadable, read_notification, read_tally, write_event
from app.notify.policy import BREAKER_FAILURES, Decision, Health, Policy, Waiting, backoff, cooldown, decide
from app.storage.postgres import only_row
from app.storage.transaction import bounded

if TYPE_CHECKING:
    from psycopg import Connection, Cursor

    from app.notify.outbox import Outbox
    from app.notify.receivers import Receiver
    from app.notify.routing import Target
    from app.notify.settings import NotificationSettings

log = structlog.get_logger("notification")

#: Unfinished deliveries of one receiver that are looked at at once, and so the most events in one digest; and the most
#: different ones among them.
MOST_WAITING, MOST_HEAPS = 20_000, 1_000
#: Why a delivery is dead, when no attempt ended it.
GAVE_UP, UNREADABLE = "gave_up", "unreadable"

PEEK = """
SELECT target, queued_at > now() - interval '1 minute' AS young FROM secrets_bridge_worker.notification_delivery
 WHERE id = %(id)s AND (state = 'pending' AND due_at <= now() OR state = 'sending' AND lease_until <= now())
"""

CLAIM_ALONE = """
UPDATE secrets_bridge_worker.notification_delivery AS delivery
   SET state = 'sending', attempts = attempts + 1, lease_until = clock_timestamp() + %(lease)s
  FROM secrets_bridge_worker.notification_event AS event
 WHERE delivery.id = %(id)s AND event.id = event_id
   AND (state = 'pending' AND due_at <= now() OR state = 'sending' AND lease_until <= now())
   AND NOT EXISTS (SELECT FROM secrets_bridge_worker.notification_target
                    WHERE name = target AND (failures >= %(breaker_failures)s OR rests_until > now()
                                             OR off_fingerprint IS NOT NULL))
RETURNING attempts, queued_at, event_id, created_at, kind, component, severity, title, detail,
          metadata::text AS metadata, tallies::text AS tallies
"""

# Heaps of equal deliveries that stand alike: of a large backlog only ids leave PostgreSQL. What is not due matters only
# to receivers that keep an order, and where it is a turn of an incident. Numbers are whole, of up to 18 digits, under
# plain names; only what was never attempted may go into a digest, and so has to be readable by SQL.
WAITING = """
WITH waiting AS (
    SELECT delivery.id, kind, component, severity, title, attempts > 0 OR tallies::text <> '[]' AS tried,
           state = 'pending' AND due_at <= now() OR state = 'sending' AND lease_until <= now() AS due,
           state = 'sending' AND lease_until > now() AS busy,
           kind = ANY (%(kinds)s) AND severity = ANY (%(severities)s)
               AND (attempts > 0 OR tallies::text <> '[]' OR metadata::text ~ %(numbers)s) AS readable
      FROM secrets_bridge_worker.notification_delivery AS delivery
      JOIN secrets_bridge_worker.notification_event AS event ON event.id = delivery.event_id
     WHERE target = %(target)s AND state IN ('pending', 'sending') AND (%(id)s::bigint IS NULL OR delivery.id = %(id)s)
       AND (state = 'pending' AND due_at <= now() OR state = 'sending' AND lease_until <= now()
            OR kind IN ('failed', 'recovered') AND (%(grouped)s OR state = 'pending' AND attempts = 0) OR %(grouped)s)
     ORDER BY delivery.id
     LIMIT %(most)s
)
SELECT kind, component, severity, title, tried, due, busy, readable, array_agg(id ORDER BY id) AS ids
  FROM waiting
 GROUP BY kind, component, severity, title, tried, due, busy, readable
 ORDER BY tried OR busy DESC, min(id)
 LIMIT %(heaps)s
"""
_NUMBER = r'"[^"\\]*"\s*:\s*-?[0-9]{1,18}'
_NUMBERS = rf"^\s*\{{\s*({_NUMBER}\s*(,\s*{_NUMBER}\s*)*)?\}}\s*$"

TALLY = """
WITH chosen AS MATERIALIZED (
    SELECT delivery.id, queued_at, component, severity, title, created_at, metadata
      FROM secrets_bridge_worker.notification_delivery AS delivery
      JOIN secrets_bridge_worker.notification_event AS event ON event.id = delivery.event_id
     WHERE delivery.id = ANY (%(ids)s)
), sums AS (
    SELECT component, severity, title, name, sum(value::text::bigint) AS total, min(ARRAY[chosen.id, position]) AS seen
      FROM chosen CROSS JOIN LATERAL json_each(metadata) WITH ORDINALITY AS number (name, value, position)
     GROUP BY component, severity, title, name
)
SELECT component, severity, title, count(*) AS events, min(created_at) AS first, max(created_at) AS last,
       max(queued_at) AS queued_at,
       (SELECT coalesce(json_object_agg(name, total ORDER BY seen), '{}') FROM sums
         WHERE sums.component = chosen.component AND sums.severity = chosen.severity
           AND sums.title = chosen.title) AS counts
  FROM chosen
 GROUP BY component, severity, title
"""

POSTPONE = """
UPDATE secrets_bridge_worker.notification_delivery SET due_at = %(until)s
 WHERE id = ANY (%(ids)s) AND state = 'pending'
"""

CLAIM = """
UPDATE secrets_bridge_worker.notification_delivery AS delivery
   SET state = 'sending', attempts = attempts + 1, lease_until = clock_timestamp() + %(lease)s
  FROM secrets_bridge_worker.notification_event AS event
 WHERE delivery.id = %(id)s AND event.id = event_id
   AND (state = 'pending' OR state = 'sending' AND lease_until <= now())
RETURNING attempts, queued_at, event_id, created_at, kind, component, severity, title, detail,
          metadata::text AS metadata, tallies::text AS tallies
"""
ADD_DIGEST = """
INSERT INTO secrets_bridge_worker.notification_delivery (event_id, target, state, attempts, queued_at, lease_until)
VALUES (%(event)s, %(target)s, 'sending', 1, %(queued_at)s, clock_timestamp() + %(lease)s)
RETURNING id
"""
DIGESTED = """
UPDATE secrets_bridge_worker.notification_delivery
   SET state = 'digested', digest = %(digest)s, finished_at = clock_timestamp(), lease_until = NULL
 WHERE id = ANY (%(ids)s) AND state = 'pending' AND attempts = 0
"""
BURY = """
UPDATE secrets_bridge_worker.notification_delivery
   SET state = 'dead', reason = %(reason)s, finished_at = clock_timestamp(), lease_until = NULL
 WHERE id = ANY (%(ids)s) AND (state = 'pending' OR state = 'sending')
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
                    WHERE name = %(target)s AND (failures > 0 OR trips > 0 OR rests_until IS NOT NULL
                                                 OR off_fingerprint IS NOT NULL)) AS healthy,
       EXISTS (SELECT FROM secrets_bridge_worker.notification_target
                WHERE name = %(target)s AND (failures >= %(breaker_failures)s OR rests_until IS NOT NULL
                                             OR off_fingerprint IS NOT NULL)) AS recovered,
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


class UnknownReceiver(Exception):
    """The delivery is for a receiver that this process is not configured for; another one may be."""


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
    outbox: Outbox

    def claim(self, connection: Connection[Any], delivery: int) -> ClaimedDelivery | None:
        """Claim what the receiver of this delivery is to be sent now; None when that is nothing.

        Raises UnknownReceiver when it is another process's to send, for as long as that may still be in time.
        """
        with bounded(connection) as cursor:
            row = cursor.execute(PEEK, {"id": delivery}).fetchone()
            target = self.targets.get(row["target"]) if row else None
            if row is None or target is None:
                if row and row["young"]:
                    raise UnknownReceiver
                return None
            policy = self.policy(target)
            if not (policy.digests or policy.pace or policy.grouped):
                query = {"id": delivery, "lease": self.settings.lease, "breaker_failures": BREAKER_FAILURES}
                row = cursor.execute(CLAIM_ALONE, query).fetchone()
                if row is not None:
                    return _read(cursor, delivery, target, row)
            return self._claim(cursor, delivery, target, policy)

    def _claim(
        self, cursor: Cursor[dict[str, Any]], delivery: int, target: Target, policy: Policy
    ) -> ClaimedDelivery | None:
        name, receiver = target.name, self._lock(cursor, target)
        if receiver.off_fingerprint and receiver.off_fingerprint != target.fingerprint:  # which is slow to compute
            receivers.switch_on(cursor, [name])
            receiver = self._lock(cursor, target)
        health = receiver.health
        if health.closed_to_all(receiver.now):
            return None
        alone = not (policy.digests or policy.grouped or health.broken)
        waiting = _waiting(cursor, target, delivery if alone else None)
        windows = receivers.windows(cursor, name, policy.repeat) if policy.repeat else {}
        decision = decide(delivery, waiting, health, policy, windows, receiver.now)
        for until, ids in decision.postpone.items():
            cursor.execute(POSTPONE, {"ids": ids, "until": until})
        if not decision.send:
            return None
        claimed = self._claim_decided(cursor, target, decision)
        if claimed is None:
            return None
        decided = {*decision.ids, *(number for held in decision.postpone.values() for number in held)}
        receivers.reserve(
            cursor,
            name,
            paced_until=decision.paced_until,
            probing=health.broken,
            caught_up=all(decided.issuperset(heap.ids) for heap in waiting if heap.due and not heap.tried),
            lease=self.settings.lease,
        )
        receivers.turn_windows(cursor, name, decision.dedup_keys, decision.ended, policy.repeat)
        return claimed

    def _lock(self, cursor: Cursor[dict[str, Any]], target: Target) -> Receiver:
        return receivers.lock(cursor, target.name, self.policy(target), self.settings)

    def _claim_decided(
        self, cursor: Cursor[dict[str, Any]], target: Target, decision: Decision
    ) -> ClaimedDelivery | None:
        lease, ids = self.settings.lease, decision.ids
        if len(ids) == 1:
            row = cursor.execute(CLAIM, {"id": ids[0], "lease": lease}).fetchone()
            if row is None:  # another process has claimed it by CLAIM_ALONE meanwhile
                return None
            return _read(cursor, ids[0], target, row)
        rows = cursor.execute(TALLY, {"ids": ids}).fetchall()
        newest = max(decision.send, key=lambda heap: heap.ids[-1]).event
        notification = write_event(cursor, digest([read_tally(row) for row in rows], newest))
        # Each event's own age counts, so a digest is as old as the youngest of its events.
        queued_at = max(row["queued_at"] for row in rows)
        added = {"event": notification.id, "target": target.name, "queued_at": queued_at, "lease": lease}
        number = only_row(cursor.execute(ADD_DIGEST, added))["id"]
        if cursor.execute(DIGESTED, {"digest": number, "ids": ids}).rowcount != len(ids):
            raise psycopg.Rollback  # some were given up or claimed meanwhile; the relay has it decided anew
        return ClaimedDelivery(number, target, notification, 1, queued_at)

    def policy(self, target: Target) -> Policy:
        """Return how a receiver is treated."""
        settings, sink = self.settings, target.sink
        if not sink.paced:
            return Policy(timedelta(0), timedelta(0), 1, 0, sink.grouped)
        return Policy(settings.repeat, settings.pace, settings.burst, settings.digest_over, sink.grouped, sink.mixed)

    def settle(
        self, connection: Connection[Any], claimed: ClaimedDelivery, error: SinkRejected | SinkUnavailable | None
    ) -> DeliveryOutcome | None:
        """Record how the attempt ended; None when its lease had ended and another process decides."""
        if error is None:
            return self._settle_delivered(connection, claimed)
        with bounded(connection) as cursor:
            return self._settle_failed(cursor, claimed, error)

    def _settle_delivered(self, connection: Connection[Any], claimed: ClaimedDelivery) -> DeliveryOutcome | None:
        name = claimed.target.name
        query = {"id": claimed.id, "attempt": claimed.attempt, "target": name, "breaker_failures": BREAKER_FAILURES}
        with bounded(connection) as cursor:
            row = cursor.execute(DELIVERED, query).fetchone()
            if row is None:
                return None
            final_states = _final_states(cursor, row["event_id"]) if row["any_dead"] else ()
        outcome = DeliveryOutcome("delivered", age=row["age"], final_states=final_states)
        if row["healthy"] and not claimed.target.sink.grouped:
            return outcome
        with bounded(connection) as cursor:  # by itself: who waits for the receiver's row holds none of its deliveries
            self._lock(cursor, claimed.target)
            receivers.switch_on(cursor, [name])
            cursor.execute(receivers.RESET_BREAKER, {"name": name})
            if row["recovered"]:
                cursor.execute(EXPEDITE_RETRIES, {"target": name})
            follow = _next_due(cursor, name)
        return outcome._replace(recovered=row["recovered"], follow=follow)

    def _settle_failed(
        self, cursor: Cursor[dict[str, Any]], claimed: ClaimedDelivery, error: SinkRejected | SinkUnavailable
    ) -> DeliveryOutcome | None:
        name, receiver = claimed.target.name, self._lock(cursor, claimed.target)
        outcome = self._outcome(claimed, error, receiver)
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
        self._update_health(cursor, claimed, error, receiver.health, outcome)
        if outcome.recovered:
            cursor.execute(EXPEDITE_RETRIES, {"target": name})
        if outcome.recovered or (claimed.target.sink.grouped and outcome.state != "pending"):
            outcome = outcome._replace(follow=_next_due(cursor, name))
        if outcome.state != "pending":
            outcome = outcome._replace(final_states=_final_states(cursor, settled["event_id"]))
        if outcome.switched_off:
            told = self.outbox.write(cursor, [_switched_off(name, outcome.reason)], without=name)
            outcome = outcome._replace(follow=(*outcome.follow, *told))
        return outcome

    def _outcome(
        self, claimed: ClaimedDelivery, error: SinkRejected | SinkUnavailable, receiver: Receiver
    ) -> DeliveryOutcome:
        health, now = receiver.health, receiver.now
        age = now - claimed.queued_at
        seconds = age.total_seconds()
        if isinstance(error, SinkRejected):
            off = health.off_until
            if off is not None and (error.off or error.fault is Fault.AUTH):  # a probe does not cost its delivery
                if age >= self.settings.give_up:
                    return DeliveryOutcome("dead", GAVE_UP, age=seconds)
                return DeliveryOutcome("pending", error.fault, max(off - now, timedelta(seconds=1)), age=seconds)
            return DeliveryOutcome("dead", error.fault, switched_off=error.off, recovered=health.broken, age=seconds)
        wait = backoff(claimed.attempt, random.random())  # noqa: S311 - not a secret
        if error.retry_after is not None:
            wait = max(wait, timedelta(seconds=error.retry_after))
        limited = error.fault is Fault.RATE_LIMITED
        # Attempts that were under way when the breaker opened do not open it further.
        broken = not limited and not health.resting(now) and health.failures + 1 >= BREAKER_FAILURES
        opened = cooldown(health.trips + 1, self.settings.cooldown) if broken else None
        if age >= self.settings.give_up:
            return DeliveryOutcome("dead", GAVE_UP, opened=opened, age=seconds)
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
        if isinstance(error, SinkRejected):
            cursor.execute(receivers.RESET_BREAKER, {"name": name})
            if outcome.switched_off:
                receivers.switch_off(cursor, name, claimed.target.fingerprint, outcome.reason)
            elif outcome.recovered:
                receivers.switch_on(cursor, [name])
            return
        limited = error.fault is Fault.RATE_LIMITED
        cursor.execute(
            receivers.COUNT_FAILURE,
            {
                "name": name,
                "failures": int(not limited),
                "trips": health.trips + 1 if outcome.opened else health.trips,
                "rest": outcome.wait if limited else outcome.opened,
                "broken": outcome.opened is not None,
            },
        )


def _read(
    cursor: Cursor[dict[str, Any]], delivery: int, target: Target, row: Mapping[str, Any]
) -> ClaimedDelivery | None:
    """Return a delivery that has been claimed; None when it cannot be read and is dead now."""
    try:
        notification = read_notification(row)
    except Unreadable:
        _bury(cursor, target, [delivery])
        return None
    return ClaimedDelivery(delivery, target, notification, row["attempts"], row["queued_at"])


def _waiting(cursor: Cursor[dict[str, Any]], target: Target, delivery: int | None) -> list[Waiting]:
    """Return what waits for a receiver, or one delivery of it, in heaps; what cannot be read becomes a dead letter."""
    query = {
        "target": target.name,
        "id": delivery,
        "grouped": target.sink.grouped,
        "kinds": list(Kind),
        "severities": list(Severity),
        "numbers": _NUMBERS,
        "most": MOST_WAITING,
        "heaps": MOST_HEAPS,
    }
    heaps = []
    for row in cursor.execute(WAITING, query).fetchall():
        if row["readable"]:
            event = Event(row["component"], Severity(row["severity"]), row["title"], kind=Kind(row["kind"]))
            group = target.sink.group(event)
            heaps.append(Waiting(row["ids"], event, row["tried"], row["due"], row["busy"], group))
        elif not row["busy"]:
            _bury(cursor, target, row["ids"])
    return heaps


def _bury(cursor: Cursor[dict[str, Any]], target: Target, ids: Sequence[int]) -> None:
    number = cursor.execute(BURY, {"ids": ids, "reason": UNREADABLE}).rowcount
    metrics.NOTIFIED.labels(target.sink.name, "dead").inc(number)
    log.error(
        "notifications that cannot be read are dead letters; a newer release may have written them",
        sink=target.name,
        reason=UNREADABLE,
        number=number,
        deliveries=list(ids[:10]),
    )


def _switched_off(name: str, reason: str) -> Event:
    return Event(
        NOTIFICATIONS,
        Severity.ERROR,
        f"notification sink switched off: {name}",
        f"reason={reason}; it stays off until its configuration changes or a probe gets through",
        kind=Kind.NOTICE,
    )


def _next_due(cursor: Cursor[dict[str, Any]], name: str) -> tuple[int, ...]:
    return tuple(row["id"] for row in cursor.execute(NEXT_DUE, {"target": name}))


def _final_states(cursor: Cursor[dict[str, Any]], event: object) -> tuple[str, ...]:
    """Return how an event ended in every sink, if it is dead in one of them; empty while it has not ended in all."""
    rows = cursor.execute(SIBLINGS, {"event": event}).fetchall()
    states = {row["state"] for row in rows}
    if "dead" not in states or states & {"pending", "sending"}:
        return ()
    return tuple(f"{row['target']}: {row['state']} {row['reason']} {row['code']}".rstrip() for row in rows)
