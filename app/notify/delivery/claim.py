"""The claim: what a receiver is to be sent now becomes this process's, for as long as its lease.

What is decided about a receiver (what goes together, what waits, its breaker) is decided under its row in
`notification_target`, by one process at a time; two receivers never wait for each other, and no process locks the row
during an attempt. A delivery that cannot be read, such as one of a newer release, becomes a dead letter when it is met:
it would stand in the way of its receiver's others.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import structlog

from app.core import metrics
from app.core.events import Event, Kind, Severity
from app.notify import receivers
from app.notify.delivery.batch import Batch, ClaimedDelivery
from app.notify.digest import digest
from app.notify.outbox import Unreadable, read_notification, read_tally, write_event
from app.notify.policy import MOST_AT_ONCE, Decision, Policy, Waiting, decide
from app.notify.receivers import Reserved
from app.storage.postgres import only_row
from app.storage.transaction import bounded

if TYPE_CHECKING:
    from datetime import datetime

    from psycopg import Connection, Cursor

    from app.notify.routing import Target
    from app.notify.settings import NotificationSettings

log = structlog.get_logger("notification")

#: Unfinished deliveries of one receiver that are looked at at once, and so the most events in one digest; and the most
#: different ones among them.
MOST_WAITING, MOST_HEAPS = 20_000, 1_000
#: Why a delivery is dead that cannot be read.
UNREADABLE = "unreadable"

PEEK = """
SELECT target, queued_at > now() - interval '1 minute' AS young FROM secrets_bridge_worker.notification_delivery
 WHERE id = %(id)s AND (state = 'pending' AND due_at <= now() OR state = 'sending' AND lease_until <= now())
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
     WHERE target = %(target)s AND state IN ('pending', 'sending')
       AND (state = 'pending' AND due_at <= now() OR state = 'sending' AND lease_until <= now()
            OR %(everything)s AND kind IN ('failed', 'recovered') AND state = 'pending' AND attempts = 0
            OR %(grouped)s)
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

# Of a replica of an older release that claims one of them at the same time, one gets it: the row decides.
CLAIM = """
UPDATE secrets_bridge_worker.notification_delivery AS delivery
   SET state = 'sending', attempts = attempts + 1, lease_until = clock_timestamp() + %(lease)s
  FROM secrets_bridge_worker.notification_event AS event
 WHERE delivery.id = ANY (%(ids)s) AND event.id = event_id
   AND (state = 'pending' OR state = 'sending' AND lease_until <= now())
RETURNING delivery.id, attempts, queued_at, replays, event_id, created_at, kind, component, severity, title, detail,
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


class UnknownReceiver(Exception):
    """The delivery is for a receiver that this process is not configured for; another one may be."""


def claim(
    connection: Connection[Any], delivery: int, targets: Mapping[str, Target], settings: NotificationSettings
) -> Batch | None:
    """Claim what the receiver of this delivery is to be sent now; None when the delivery is not due.

    Raises UnknownReceiver when it is another process's to send, for as long as that may still be in time.
    """
    with bounded(connection) as cursor:
        row = cursor.execute(PEEK, {"id": delivery}).fetchone()
        target = targets.get(row["target"]) if row else None
        if row is None or target is None:
            if row and row["young"]:
                raise UnknownReceiver
            return None
        return _claim(cursor, delivery, target, settings)
    return None  # rolled back: what was decided about has changed


def _claim(
    cursor: Cursor[dict[str, Any]], delivery: int, target: Target, settings: NotificationSettings
) -> Batch | None:
    name, policy = target.name, policy_of(target, settings)
    receiver = receivers.lock(cursor, name, policy, settings)
    if receiver.off_fingerprint and receiver.off_fingerprint != target.fingerprint:  # which is slow to compute
        receivers.switch_on(cursor, [name])
        receiver = receivers.lock(cursor, name, policy, settings)
    health = receiver.health
    if health.closed_to_all(receiver.now):
        return None
    waiting = _waiting(cursor, target, everything=policy.digests or policy.grouped or health.broken)
    windows = receivers.windows(cursor, name, policy.repeat) if policy.repeat else {}
    decision = decide(delivery, waiting, health, policy, windows, receiver.now)
    for until, ids in decision.postpone.items():
        cursor.execute(POSTPONE, {"ids": ids, "until": until})
    decided = decision.decided
    left = any(not decided.issuperset(heap.ids) for heap in waiting if heap.due)
    # Without any the one that was asked for could not be read. Where nothing is sent, nothing else can be, now.
    more = not waiting or (left and bool(decision.alone or decision.together))
    claimed_at = time.monotonic()
    claimed = [*_claim_alone(cursor, target, decision.alone, settings)]
    if decision.together:
        claimed.append(_claim_digest(cursor, target, decision, settings))
    reserved = Reserved()
    if claimed:
        caught_up = all(decided.issuperset(heap.ids) for heap in waiting if heap.due and not heap.tried)
        reserved = _reserve(cursor, target, receiver, decision, windows, settings, caught_up=caught_up)
    return Batch(target, tuple(claimed), claimed_at, health.failures, more, reserved)


def _reserve(  # noqa: PLR0913, PLR0917 - what a batch uses up
    cursor: Cursor[dict[str, Any]],
    target: Target,
    receiver: receivers.Receiver,
    decision: Decision,
    windows: Mapping[str, datetime],
    settings: NotificationSettings,
    *,
    caught_up: bool,
) -> Reserved:
    """Use up of the receiver what the batch will; return what is given back should it not be sent."""
    name, policy, health = target.name, policy_of(target, settings), receiver.health
    opened, ended = tuple(decision.dedup_keys), tuple(decision.ended)
    reserved = Reserved(
        opened=opened,
        until=receiver.now + policy.repeat,
        before={key: until for key, until in windows.items() if key in opened or key.startswith(ended)},
    )
    if decision.paced_until or health.broken or health.catch_up:
        probe_until, off_until = receivers.reserve(
            cursor,
            name,
            paced_until=decision.paced_until,
            probing=health.broken,
            caught_up=caught_up,
            lease=settings.lease,
        )
        reserved = reserved._replace(
            pace=policy.pace if decision.paced_until else timedelta(0),
            probe_until=probe_until if health.broken else None,
            off_until=off_until,
            off_before=health.off_until,
            catch_up=health.catch_up and caught_up,
        )
    receivers.turn_windows(cursor, name, opened, ended, policy.repeat)
    return reserved


def policy_of(target: Target, settings: NotificationSettings) -> Policy:
    """Return how a receiver is treated."""
    sink = target.sink
    if not sink.paced:
        return Policy(timedelta(0), timedelta(0), 1, 0, sink.grouped)
    return Policy(settings.repeat, settings.pace, settings.burst, settings.digest_over, sink.grouped, sink.mixed)


def _claim_alone(
    cursor: Cursor[dict[str, Any]], target: Target, ids: Sequence[int], settings: NotificationSettings
) -> Iterable[ClaimedDelivery]:
    """Claim deliveries that are sent each by itself, and return those that can be read; the others are dead now."""
    claimed, unreadable = [], []
    rows = cursor.execute(CLAIM, {"ids": list(ids), "lease": settings.lease}).fetchall() if ids else []
    for row in sorted(rows, key=lambda row: row["id"]):
        try:
            notification = read_notification(row)
        except Unreadable:
            unreadable.append(row["id"])
        else:
            notification = replace(notification, deployment=settings.deployment, replays=row["replays"])
            claimed.append(ClaimedDelivery(row["id"], notification, row["attempts"], row["queued_at"]))
    if unreadable:
        _bury(cursor, target, unreadable)
    return claimed


def _claim_digest(
    cursor: Cursor[dict[str, Any]], target: Target, decision: Decision, settings: NotificationSettings
) -> ClaimedDelivery:
    ids = decision.digest
    rows = cursor.execute(TALLY, {"ids": ids}).fetchall()
    newest = max(decision.together, key=lambda heap: heap.ids[-1]).event
    notification = write_event(cursor, digest([read_tally(row) for row in rows], newest))
    # Each event's own age counts, so a digest is as old as the youngest of its events.
    queued_at = max(row["queued_at"] for row in rows)
    added = {"event": notification.id, "target": target.name, "queued_at": queued_at, "lease": settings.lease}
    number = only_row(cursor.execute(ADD_DIGEST, added))["id"]
    if cursor.execute(DIGESTED, {"digest": number, "ids": ids}).rowcount != len(ids):
        raise psycopg.Rollback  # some were given up or claimed meanwhile; the relay has it decided anew
    return ClaimedDelivery(number, replace(notification, deployment=settings.deployment), 1, queued_at)


def _waiting(cursor: Cursor[dict[str, Any]], target: Target, *, everything: bool) -> list[Waiting]:
    """Return what waits for a receiver, in heaps; what cannot be read becomes a dead letter.

    Where nothing depends on the rest of it, it is not `everything`, but one more than can be sent at once.
    """
    query = {
        "target": target.name,
        "grouped": target.sink.grouped,
        "everything": everything,
        "kinds": list(Kind),
        "severities": list(Severity),
        "numbers": _NUMBERS,
        "most": MOST_WAITING if everything else MOST_AT_ONCE + 1,
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
