"""What a receiver is sent next: one delivery, many as one, or nothing yet. No SQL, no clock of its own.

off, resting, probed by someone     nothing
probing                             what was tried before, else everything as one
tried before                        that one, by itself: an attempt may have arrived although we think it failed, so
                                    its id must not change
equal to one that was just sent     held, to be sent with its like
out of pace                         held until the pace allows
few                                 the one that was asked for
many, or after an outage            all as one
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from app.core.backoff import exponential, jittered
from app.core.events import Notification

#: Failures in a row after which a receiver is left alone for a while.
BREAKER_FAILURES = 5
LONGEST_COOLDOWN = timedelta(minutes=10)
FIRST_BACKOFF, LONGEST_BACKOFF = timedelta(seconds=1), timedelta(hours=1)


class Policy(NamedTuple):
    """How one receiver is treated."""

    repeat: timedelta
    pace: timedelta
    burst: int
    digest_over: int
    grouped: bool

    @property
    def digests(self) -> bool:
        """Whether events may ever be told together."""
        return self.digest_over > 0


class Health(NamedTuple):
    """What is known of a receiver; times aware."""

    failures: int
    trips: int
    rests_until: datetime | None
    probe_until: datetime | None
    catch_up: bool
    paced_until: datetime

    @property
    def broken(self) -> bool:
        """Whether the breaker is open, or half open once the rest is over."""
        return self.failures >= BREAKER_FAILURES

    def closed_to_all(self, now: datetime) -> bool:
        """Say whether nothing may be sent now: it rests, or someone else probes."""
        resting = self.rests_until is not None and now < self.rests_until
        probed = self.broken and self.probe_until is not None and now < self.probe_until
        return resting or probed


class Waiting(NamedTuple):
    """An unfinished delivery. `due` says that it may be sent now, `busy` that someone is sending it."""

    id: int
    notification: Notification
    attempts: int
    due: bool
    busy: bool
    group: str

    @property
    def key(self) -> str:
        """Equal events have equal keys."""
        event = self.notification.event
        return f"{event.component}|{event.severity}|{event.title}"


@dataclass(frozen=True)
class Decision:
    """What to send, what to hold and until when, and what this takes of the receiver's pace."""

    send: tuple[Waiting, ...] = ()
    postpone: Mapping[datetime, list[int]] = field(default_factory=dict)
    paced_until: datetime | None = None
    #: Keys whose like is held from now on.
    dedup_keys: frozenset[str] = frozenset()


def decide(  # noqa: PLR0913, PLR0917 - all that a decision depends on
    asked: int,
    waiting: Sequence[Waiting],
    health: Health,
    policy: Policy,
    windows: Mapping[str, datetime],
    now: datetime,
) -> Decision:
    """Decide about one receiver; `waiting` are its unfinished deliveries, oldest first."""
    free = [one for one in _in_order(waiting) if one.due]
    tried = [one for one in free if one.attempts]
    by_id = {one.id: one for one in free}
    if not free:
        return Decision()
    wanted = by_id.get(asked) or (tried or free)[0]
    if health.broken and tried:
        return Decision(send=(tried[0],))
    if wanted.attempts:
        return Decision(send=(wanted,))
    fresh = [one for one in free if not one.attempts]
    if not policy.digests:
        return _paced(Decision(send=(wanted,)), [wanted], health, policy, now)
    postponed = {one.id: windows[one.key] for one in fresh if not one.group and windows.get(one.key, now) > now}
    ready = [one for one in fresh if one.id not in postponed]
    postpone: dict[datetime, list[int]] = {}
    for number, until in postponed.items():
        postpone.setdefault(until, []).append(number)
    if not ready:
        return Decision(postpone=postpone)
    group = wanted.group if wanted.id not in postponed else ready[0].group
    together = [one for one in ready if one.group == group]
    if len(together) > policy.digest_over or health.catch_up or health.broken:
        chosen = together
    else:
        chosen = [wanted] if wanted in together and not group else together[:1]
    keys = frozenset(one.key for one in chosen if not one.group) if policy.repeat else frozenset()
    return _paced(Decision(tuple(chosen), postpone, dedup_keys=keys), ready, health, policy, now)


def _paced(decision: Decision, ready: Iterable[Waiting], health: Health, policy: Policy, now: datetime) -> Decision:
    """Let the burst through, then one message a pace (a leaky bucket by its virtual time)."""
    if not policy.pace:
        return decision
    free_from = health.paced_until - policy.pace * (policy.burst - 1)
    if free_from > now:
        postpone = {**decision.postpone, free_from: [one.id for one in ready]}
        return Decision(postpone=postpone)
    return Decision(decision.send, decision.postpone, max(health.paced_until, now) + policy.pace, decision.dedup_keys)


def _in_order(waiting: Iterable[Waiting]) -> list[Waiting]:
    """Leave out what comes after an unfinished one of its group: an end must not overtake its beginning."""
    blocked: set[str] = set()
    free: list[Waiting] = []
    for one in waiting:
        if one.group and (one.group in blocked or one.busy or (one.attempts and not one.due)):
            blocked.add(one.group)
            continue
        free.append(one)
        if one.group and one.attempts:  # it goes first, and alone
            blocked.add(one.group)
    return free


def backoff(attempts: int, jitter: float) -> timedelta:
    """Return the wait after so many failed attempts: 1 s, doubled up to 1 h, times 0.8 to 1.2; `jitter` in [0, 1)."""
    return min(jittered(exponential(FIRST_BACKOFF, attempts, LONGEST_BACKOFF), jitter), LONGEST_BACKOFF)


def cooldown(trips: int, first: timedelta) -> timedelta:
    """Return how long a receiver rests after its breaker opened for the `trips`-th time in a row."""
    return exponential(first, trips, max(first, LONGEST_COOLDOWN))
