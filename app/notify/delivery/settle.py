"""The settlement: how the attempts of a batch ended is written into its deliveries, and into its receiver's health.

Both are one transaction under the receiver's row, as the claim was. What was claimed and not attempted is given back as
it was before, with what the claim has used up for it. A delivery whose lease has ended meanwhile is another process's,
and stays as it is.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from app.core.errors import Fault, SinkRejected, SinkUnavailable
from app.core.events import NOTIFICATIONS, Event, Kind, Severity
from app.notify import receivers
from app.notify.delivery.batch import Attempted, Batch, ClaimedDelivery, DeliveryOutcome
from app.notify.delivery.claim import policy_of
from app.notify.policy import BREAKER_FAILURES, FIRST_OFF_PROBES, Health, backoff, cooldown
from app.storage.transaction import bounded

if TYPE_CHECKING:
    from psycopg import Connection, Cursor

    from app.notify.outbox import Outbox, Written
    from app.notify.routing import Target
    from app.notify.settings import NotificationSettings

#: Why a delivery is dead, when no attempt ended it.
GAVE_UP = "gave_up"

SETTLE = """
WITH settled AS (
    UPDATE secrets_bridge_worker.notification_delivery AS delivery
       SET state = ended.state, reason = coalesce(ended.reason, delivery.reason),
           code = coalesce(ended.code, delivery.code), lease_until = NULL,
           attempts = CASE WHEN ended.reason IS NULL THEN attempts - 1 ELSE attempts END,
           due_at = CASE WHEN ended.state = 'pending' THEN now() + ended.wait ELSE due_at END,
           finished_at = CASE WHEN ended.state = 'pending' THEN NULL ELSE clock_timestamp() END
      FROM unnest(%(ids)s::bigint[], %(attempts)s::integer[], %(states)s::text[], %(reasons)s::text[],
                  %(codes)s::text[], %(waits)s::interval[]) AS ended (id, attempt, state, reason, code, wait)
     WHERE delivery.id = ended.id AND delivery.state = 'sending' AND attempts = ended.attempt
 RETURNING delivery.id, event_id, delivery.state
)
SELECT id, event_id,
       state = 'dead' OR state = 'delivered'
           AND EXISTS (SELECT FROM secrets_bridge_worker.notification_delivery AS sibling
                        WHERE sibling.event_id = settled.event_id AND sibling.state = 'dead') AS any_dead
  FROM settled
"""
EXPEDITE_RETRIES = """
UPDATE secrets_bridge_worker.notification_delivery SET due_at = now()
 WHERE target = %(target)s AND state = 'pending' AND attempts > 0
"""
NEXT_DUE = """
SELECT id FROM secrets_bridge_worker.notification_delivery
 WHERE target = %(target)s AND state = 'pending' AND due_at <= now() ORDER BY id LIMIT 1
"""
SIBLINGS = """
SELECT event_id, target, state, reason, code FROM secrets_bridge_worker.notification_delivery
 WHERE event_id = ANY (%(events)s) ORDER BY target
"""


class Settlement(NamedTuple):
    """What became of attempts, in their order; those that were not this process's any more are left out."""

    outcomes: tuple[tuple[Attempted, DeliveryOutcome], ...] = ()
    #: A delivery of the receiver that is due, if one was looked for.
    follow: int | None = None
    #: What was written to the outbox.
    written: tuple[Written, ...] = ()


def settle(  # noqa: PLR0913 - a batch's end
    connection: Connection[Any],
    batch: Batch,
    attempted: Sequence[Attempted],
    unsent: Sequence[ClaimedDelivery],
    *,
    more: bool,
    settings: NotificationSettings,
    outbox: Outbox,
) -> Settlement:
    """Record how attempts ended, and give back what was not attempted.

    With `more` the receiver is known to have more that is due; else that is looked for where this may have made it so.
    """
    target = batch.target
    with bounded(connection) as cursor:
        receiver = receivers.lock(cursor, target.name, policy_of(target, settings), settings)
        health, now = receiver.health, receiver.now
        outcomes = []
        for sent in attempted:
            health, outcome = _observe(health, sent, _outcome(sent, health, now, settings), now, settings)
            outcomes.append(outcome)
        settled = _settle(cursor, attempted, outcomes, unsent)
        ours = [pair for pair in zip(attempted, outcomes, strict=True) if pair[0].delivery.id in settled]
        if len(ours) < len(attempted):  # what is another process's says nothing any more
            health = receiver.health
            for sent, outcome in ours:
                health, _ = _observe(health, sent, outcome, now, settings)
        written = _update_receiver(cursor, target, receiver.health, health, ours, outbox)
        if given_back := [delivery for delivery in unsent if delivery.id in settled]:
            fresh = sum(delivery.fresh for delivery in given_back)
            receivers.give_back(cursor, target.name, batch.reserved, fresh)
        # In one settlement a success and a refusal may come in any order; what is told is how it stands after all.
        recovered = any(outcome.recovered for _, outcome in ours) and not health.resting(now)
        off = health.off_until is not None
        if recovered:
            cursor.execute(EXPEDITE_RETRIES, {"target": target.name})
        looks = more or recovered or unsent or target.sink.grouped
        row = cursor.execute(NEXT_DUE, {"target": target.name}).fetchone() if looks else None
        follow = row["id"] if row and not health.closed_to_all(now) else None
        told = (
            (
                sent,
                outcome._replace(
                    final_states=settled[sent.delivery.id],
                    recovered=outcome.recovered and recovered,
                    switched_off=outcome.switched_off and off,
                ),
            )
            for sent, outcome in ours
        )
        return Settlement(tuple(told), follow, tuple(written))


def _settle(
    cursor: Cursor[dict[str, Any]],
    attempted: Sequence[Attempted],
    outcomes: Sequence[DeliveryOutcome],
    unsent: Sequence[ClaimedDelivery],
) -> Mapping[int, tuple[str, ...]]:
    """Write down what became of deliveries; return those that were this process's, and how their events ended."""
    deliveries = [*(sent.delivery for sent in attempted), *unsent]
    if not deliveries:
        return {}
    nothing: list[None] = [None] * len(unsent)
    query = {
        "ids": [delivery.id for delivery in deliveries],
        "attempts": [delivery.attempt for delivery in deliveries],
        "states": [*(outcome.state for outcome in outcomes), *("pending" for _ in unsent)],
        "reasons": [*(outcome.reason for outcome in outcomes), *nothing],
        "codes": [*(sent.error.code if sent.error else "" for sent in attempted), *nothing],
        "waits": [*(outcome.wait for outcome in outcomes), *(timedelta(0) for _ in unsent)],
    }
    rows = cursor.execute(SETTLE, query).fetchall()
    final = _final_states(cursor, [row["event_id"] for row in rows if row["any_dead"]])
    return {row["id"]: final.get(row["event_id"], ()) for row in rows}


def _outcome(sent: Attempted, health: Health, now: datetime, settings: NotificationSettings) -> DeliveryOutcome:
    """Return what becomes of one delivery, by its receiver's health before."""
    delivery, error = sent.delivery, sent.error
    age = now - delivery.queued_at
    seconds = age.total_seconds()
    if error is None:
        return DeliveryOutcome("delivered", age=seconds)
    if isinstance(error, SinkRejected):
        if not _still_off(error, health):
            return DeliveryOutcome("dead", error.fault, switched_off=error.off, age=seconds)
        wait = max((health.off_until or now) - now, timedelta(seconds=1))  # a probe does not cost its delivery
    else:
        wait = backoff(delivery.attempt, random.random())  # noqa: S311 - not a secret
        if error.retry_after is not None:
            wait = max(wait, timedelta(seconds=error.retry_after))
    if health.age(delivery.queued_at, now) >= settings.give_up:
        return DeliveryOutcome("dead", GAVE_UP, age=seconds)
    return DeliveryOutcome("pending", error.fault, wait, age=seconds)


def _still_off(error: SinkRejected, health: Health) -> bool:
    """Return whether a receiver that is switched off has refused a probe like before."""
    return health.off_until is not None and (error.off or error.fault is Fault.AUTH)


def _observe(
    health: Health, sent: Attempted, outcome: DeliveryOutcome, now: datetime, settings: NotificationSettings
) -> tuple[Health, DeliveryOutcome]:
    """Return a receiver's health after an attempt, and what the attempt has changed about it."""
    error = sent.error
    if not isinstance(error, SinkUnavailable):
        # Nothing is begun while it rests: what gets through then was begun before, and does not end the rest.
        rests_until = health.rests_until if health.resting(now) else None
        well = health._replace(failures=0, trips=0, rests_until=rests_until, probe_until=None)
        if error is not None and _still_off(error, health):
            return well, outcome
        if outcome.switched_off:
            return well._replace(off_until=now + FIRST_OFF_PROBES), outcome
        recovered = health.broken or health.rests_until is not rests_until
        return well._replace(off_until=None), outcome._replace(recovered=recovered)
    if error.fault is Fault.RATE_LIMITED:
        rests_until = max(health.rests_until or now, now + outcome.wait)
        return health._replace(rests_until=rests_until, probe_until=None), outcome
    failures, trips = health.failures + 1, health.trips + 1
    failed = health._replace(failures=failures, probe_until=None)
    # Attempts that were under way when the breaker opened do not open it further.
    if health.resting(now) or failures < BREAKER_FAILURES:
        return failed, outcome
    rest = cooldown(trips, settings.cooldown)
    return failed._replace(trips=trips, rests_until=now + rest, catch_up=True), outcome._replace(opened=rest)


def _update_receiver(  # noqa: PLR0913, PLR0917 - before and after
    cursor: Cursor[dict[str, Any]],
    target: Target,
    before: Health,
    after: Health,
    outcomes: Iterable[tuple[Attempted, DeliveryOutcome]],
    outbox: Outbox,
) -> list[Written]:
    """Write down a receiver's health where it has changed; return what others are told of it."""
    if after != before:
        receivers.save(cursor, target.name, after)
    if before.off_until is not None and after.off_until is None:
        receivers.switch_on(cursor, [target.name])
    if before.off_until is not None or after.off_until is None:
        return []
    reason = next(outcome.reason for _, outcome in outcomes if outcome.switched_off)
    receivers.switch_off(cursor, target.name, target.fingerprint, reason)
    return outbox.write(cursor, [_switched_off(target.name, reason)], without=target.name)


def _switched_off(name: str, reason: str) -> Event:
    return Event(
        NOTIFICATIONS,
        Severity.ERROR,
        f"notification sink switched off: {name}",
        f"reason={reason}; it stays off until its configuration changes or a probe gets through",
        kind=Kind.NOTICE,
    )


def _final_states(cursor: Cursor[dict[str, Any]], events: Sequence[object]) -> dict[object, tuple[str, ...]]:
    """Return how events ended in every sink, of those that have ended in all and are dead in one."""
    siblings: dict[object, list[Mapping[str, Any]]] = defaultdict(list)
    for row in cursor.execute(SIBLINGS, {"events": list(events)}) if events else ():
        siblings[row["event_id"]].append(row)
    return {
        event: tuple(f"{row['target']}: {row['state']} {row['reason']} {row['code']}".rstrip() for row in rows)
        for event, rows in siblings.items()
        if (states := {row["state"] for row in rows}) and "dead" in states and not states & {"pending", "sending"}
    }
