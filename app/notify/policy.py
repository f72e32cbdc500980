"""What a receiver is sent next: one delivery, many in one digest, or nothing yet. No SQL, no clock of its own.

off, resting, probed by another       nothing
probing                               one that was attempted before, else a digest of all
attempted before                      that one, by itself: an attempt may have arrived although we think it failed, so
                                      its id must not change
equal to one that was just sent       postponed to the end of its dedup window, then sent in one digest
out of pace                           postponed until the pace allows it
few                                   the one that was triggered
many, or after an outage              a digest of all
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from app.core.backoff import exponential, jittered
from app.core.events import Notification

#: Failures in a row that open a receiver's breaker.
BREAKER_FAILURES = 5
#: The longest rest of a receiver, unless the operator's first one is longer.
LONGEST_COOLDOWN = timedelta(minutes=10)
#: The wait after a delivery's first failure, and the longest between two attempts of it.
FIRST_BACKOFF, LONGEST_BACKOFF = timedelta(seconds=1), timedelta(hours=1)


class Policy(NamedTuple):
    """How one receiver is treated.

    `repeat` is the dedup window of equal events; `burst` messages may go at once, then one each `pace` (both durations
    may be 0, which is no limit); more than `digest_over` waiting events go as a digest, 0 means never; `grouped` is
    whether its sink keeps events of one group in order.
    """

    repeat: timedelta
    pace: timedelta
    burst: int
    digest_over: int
    grouped: bool

    @property
    def digests(self) -> bool:
        """Whether events may ever be sent in one digest."""
        return self.digest_over > 0


class Health(NamedTuple):
    """What is known of a receiver; times aware.

    `failures` in a row, `trips` of the breaker in a row, `catch_up` after an outage: what has piled up is one digest.
    """

    failures: int
    trips: int
    rests_until: datetime | None
    probe_until: datetime | None
    catch_up: bool
    paced_until: datetime

    @property
    def broken(self) -> bool:
        """Whether the breaker is open, or half open because the rest is over."""
        return self.failures >= BREAKER_FAILURES

    def resting(self, now: datetime) -> bool:
        """Return whether it is left alone until a later time."""
        return self.rests_until is not None and now < self.rests_until

    def closed_to_all(self, now: datetime) -> bool:
        """Return whether nothing may be sent now: it rests, or another process probes it."""
        probed = self.broken and self.probe_until is not None and now < self.probe_until
        return self.resting(now) or probed


class Waiting(NamedTuple):
    """An unfinished delivery: `due` when it may be sent now, `busy` while a process is sending it."""

    id: int
    notification: Notification
    attempts: int
    due: bool
    busy: bool
    group: str

    @property
    def key(self) -> str:
        """The key of its dedup window: equal events have equal keys."""
        event = self.notification.event
        return f"{event.component}|{event.severity}|{event.title}"


@dataclass(frozen=True)
class Decision:
    """What to send, what to postpone and until when, and until when this uses up the receiver's pace."""

    send: tuple[Waiting, ...] = ()
    postpone: Mapping[datetime, list[int]] = field(default_factory=dict)
    paced_until: datetime | None = None
    #: Keys whose dedup windows begin now.
    dedup_keys: frozenset[str] = frozenset()


def decide(  # noqa: PLR0913, PLR0917 - all that a decision depends on
    triggered: int,
    waiting: Sequence[Waiting],
    health: Health,
    policy: Policy,
    windows: Mapping[str, datetime],
    now: datetime,
) -> Decision:
    """Decide about one receiver.

    `triggered` is the id of the delivery that a message asks for, `waiting` are the receiver's unfinished deliveries,
    oldest first, `windows` the ends of its dedup windows by their keys.
    """
    due = [delivery for delivery in _in_order(waiting) if delivery.due]
    if not due:
        return Decision()
    retries = [delivery for delivery in due if delivery.attempts]
    candidate = {delivery.id: delivery for delivery in due}.get(triggered) or (retries or due)[0]
    if health.broken and retries:
        return Decision(send=(retries[0],))
    if candidate.attempts:
        return Decision(send=(candidate,))
    if not policy.digests:
        return _paced(Decision(send=(candidate,)), [candidate], health, policy, now)
    ready: list[Waiting] = []
    postpone: dict[datetime, list[int]] = {}
    for delivery in due:
        if delivery.attempts:
            continue
        until = now if delivery.group else windows.get(delivery.key, now)
        if until > now:
            postpone.setdefault(until, []).append(delivery.id)
        else:
            ready.append(delivery)
    if not ready:
        return Decision(postpone=postpone)
    group = candidate.group if candidate in ready else ready[0].group
    digestible = [delivery for delivery in ready if delivery.group == group]
    if len(digestible) > policy.digest_over or health.catch_up or health.broken:
        chosen = digestible
    else:
        chosen = [candidate] if candidate in digestible and not group else digestible[:1]
    keys = frozenset(delivery.key for delivery in chosen if not delivery.group) if policy.repeat else frozenset()
    return _paced(Decision(tuple(chosen), postpone, dedup_keys=keys), ready, health, policy, now)


def _paced(decision: Decision, ready: Iterable[Waiting], health: Health, policy: Policy, now: datetime) -> Decision:
    """Postpone what is out of pace: a burst goes at once, then one message each pace (a leaky bucket)."""
    if not policy.pace:
        return decision
    next_at = health.paced_until - policy.pace * (policy.burst - 1)
    if next_at > now:
        return Decision(postpone={**decision.postpone, next_at: [delivery.id for delivery in ready]})
    return Decision(decision.send, decision.postpone, max(health.paced_until, now) + policy.pace, decision.dedup_keys)


def _in_order(waiting: Iterable[Waiting]) -> list[Waiting]:
    """Leave out what follows an unfinished delivery of its group: an end must not overtake its beginning."""
    blocked: set[str] = set()
    unblocked: list[Waiting] = []
    for delivery in waiting:
        waits = delivery.busy or (delivery.attempts and not delivery.due)
        if delivery.group and (delivery.group in blocked or waits):
            blocked.add(delivery.group)
            continue
        unblocked.append(delivery)
        if delivery.group and delivery.attempts:  # it goes first, and alone
            blocked.add(delivery.group)
    return unblocked


def backoff(attempts: int, draw: float) -> timedelta:
    """Return the wait after so many failed attempts: 1 s, doubled up to 1 h, with jitter; `draw` in [0, 1)."""
    return min(jittered(exponential(FIRST_BACKOFF, attempts, LONGEST_BACKOFF), draw), LONGEST_BACKOFF)


def cooldown(trips: int, first: timedelta) -> timedelta:
    """Return how long a receiver rests after its breaker opened for the `trips`-th time in a row."""
    return exponential(first, trips, max(first, LONGEST_COOLDOWN))
