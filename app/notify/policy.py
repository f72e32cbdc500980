"""What a receiver is sent next: a batch of deliveries, many in one digest, or nothing yet. No SQL, no clock of its own.

resting, probed by another, off,      nothing
or muted
probing                               one that was attempted before, else a digest of all
attempted before                      each by itself, side by side: an attempt may have arrived although we think it
                                      failed, so its id must not change
equal to one that was just sent       postponed to the end of its dedup window, then sent in one digest
out of pace                           postponed until the pace allows it
never sent in digests                 each by itself, side by side
few                                   the one that was triggered
many, or after an outage              a digest of all; or of one component after the other, where they share none

What waits is given in heaps: the deliveries of equal events that stand alike, by their ids. A backlog of many thousands
is a few heaps.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from app.core.backoff import exponential, jittered
from app.core.events import Event, Kind

#: Deliveries that are claimed at once, and sent side by side.
MOST_AT_ONCE = 100
#: Failures in a row that open a receiver's breaker.
BREAKER_FAILURES = 5
#: The longest rest of a receiver, unless the operator's first one is longer.
LONGEST_COOLDOWN = timedelta(minutes=10)
#: The wait after a delivery's first failure, and the longest between two attempts of it.
FIRST_BACKOFF, LONGEST_BACKOFF = timedelta(seconds=1), timedelta(hours=1)
#: A receiver that is switched off is probed this often, in its first hour and then.
FIRST_OFF_PROBES, LATER_OFF_PROBES = timedelta(minutes=10), timedelta(hours=1)
_INCIDENTS = (Kind.FAILED, Kind.RECOVERED)


class Policy(NamedTuple):
    """How one receiver is treated.

    `repeat` is the dedup window of equal events; `burst` messages may go at once, then one each `pace` (both durations
    may be 0, which is no limit); more than `digest_over` waiting events go as a digest, 0 means never; `grouped` is
    whether its sink keeps events of one group in order; `mixed` whether a digest may be of several components.
    """

    repeat: timedelta
    pace: timedelta
    burst: int
    digest_over: int
    grouped: bool
    mixed: bool = True

    @property
    def digests(self) -> bool:
        """Whether events may ever be sent in one digest."""
        return self.digest_over > 0


class Health(NamedTuple):
    """What is known of a receiver; times aware.

    `failures` in a row, `trips` of the breaker in a row, `catch_up` after an outage: what has piled up is one digest.
    `off_until` is when it is probed although it is switched off; None when it is not. `muted_until` is the end of the
    newest mute by hand, past or to come.
    """

    failures: int
    trips: int
    rests_until: datetime | None
    probe_until: datetime | None
    catch_up: bool
    paced_until: datetime
    off_until: datetime | None = None
    muted_until: datetime | None = None

    @property
    def broken(self) -> bool:
        """Whether what is sent now is a probe: the breaker is not closed, or the receiver is switched off."""
        return self.failures >= BREAKER_FAILURES or self.off_until is not None

    def resting(self, now: datetime) -> bool:
        """Return whether it is left alone until a later time."""
        return self.rests_until is not None and now < self.rests_until

    def muted(self, now: datetime) -> bool:
        """Return whether somebody wants nothing sent there until a later time."""
        return self.muted_until is not None and now < self.muted_until

    def age(self, queued_at: datetime, now: datetime) -> timedelta:
        """Return how long a delivery has been due: time before the end of a mute does not count against it."""
        return now - max(queued_at, self.muted_until or queued_at)

    def closed_to_all(self, now: datetime) -> bool:
        """Return whether nothing may be sent now: it rests, it is off, muted, or another process probes it."""
        probed = self.broken and self.probe_until is not None and now < self.probe_until
        off = self.off_until is not None and now < self.off_until
        return self.resting(now) or probed or off or self.muted(now)


class Waiting(NamedTuple):
    """A heap of unfinished deliveries, by their ids in order, of equal events.

    `event` has no texts or numbers but those that make events equal. `tried` when they were attempted before, `due`
    when they may be sent now, `busy` while a process is sending them.
    """

    ids: Sequence[int]
    event: Event
    tried: bool
    due: bool
    busy: bool
    group: str

    @property
    def key(self) -> str:
        """The key of its dedup window: equal events have equal keys."""
        return f"{turn(self.event.component, self.event.kind)}{self.event.severity}|{self.event.title}"

    def before(self, number: int) -> Waiting:
        """Return the part of it with smaller ids."""
        return self._replace(ids=self.ids[: bisect_left(self.ids, number)])


def turn(component: str, kind: str) -> str:
    """Return how the keys of the dedup windows of a component's events of one kind begin."""
    return f"{component}|{kind}|"


@dataclass(frozen=True)
class Decision:
    """What to send, what to postpone and until when, and until when this uses up the receiver's pace."""

    #: Deliveries that are sent each by itself, in order; and what is sent in one digest beside them.
    alone: tuple[int, ...] = ()
    together: tuple[Waiting, ...] = ()
    postpone: Mapping[datetime, list[int]] = field(default_factory=dict)
    paced_until: datetime | None = None
    #: Keys whose dedup windows begin now.
    dedup_keys: frozenset[str] = frozenset()
    #: Beginnings of the keys whose dedup windows end now: a recovery ends that of its failure, and the reverse.
    ended: frozenset[str] = frozenset()

    @property
    def digest(self) -> list[int]:
        """The deliveries of the digest, in order."""
        return sorted(number for heap in self.together for number in heap.ids)

    @property
    def decided(self) -> set[int]:
        """The deliveries that something is decided about."""
        return {*self.alone, *self.digest, *(number for held in self.postpone.values() for number in held)}


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
    `windows` the ends of its dedup windows by their keys.
    """
    due = [heap for heap in _in_order(waiting) if heap.due]
    tried = _each(heap for heap in due if heap.tried)
    if health.broken and tried:
        return Decision(tried[:1])
    # Of one group one is sent at a time.
    groups = {heap.group for heap in due if heap.group and heap.tried}
    fresh = [heap for heap in due if not heap.tried and heap.group not in groups]
    if not fresh:
        return Decision(tried)
    tried = tried[: MOST_AT_ONCE - 1]  # what is fresh has a place: many that fail do not hold up a new one
    if policy.digests:
        decision = _together(triggered, fresh, waiting, health, policy, windows, now)
    else:
        most = 1 if health.broken else MOST_AT_ONCE - len(tried)
        decision = _paced(Decision(_each(fresh)[:most]), fresh, health, policy, now)
    return replace(decision, alone=(*tried, *decision.alone))


def _together(  # noqa: PLR0913, PLR0917 - all that a decision depends on
    triggered: int,
    fresh: Sequence[Waiting],
    waiting: Sequence[Waiting],
    health: Health,
    policy: Policy,
    windows: Mapping[str, datetime],
    now: datetime,
) -> Decision:
    """Decide about what is due and was never attempted, for a receiver that may be sent digests: on one message."""
    ready: list[Waiting] = []
    postpone: dict[datetime, list[int]] = {}
    for heap in fresh:
        until = now if heap.group else windows.get(heap.key, now)
        if until > now:
            postpone.setdefault(until, []).extend(heap.ids)
        else:
            ready.append(heap)
    if not ready:
        return Decision(postpone=postpone)
    candidate = _only(triggered, fresh) or _oldest(fresh)
    first = next((heap for heap in ready if candidate.ids[0] in heap.ids), _oldest(ready))
    if not policy.mixed and _uses_up(health, policy, now):
        first = _oldest(ready)  # whose component has its turn now: it is always the loudest one that triggers
    together = [heap for heap in ready if heap.group == first.group]
    digestible = [heap for heap in together if policy.mixed or heap.event.component == first.event.component]
    if sum(len(heap.ids) for heap in together) > policy.digest_over or health.catch_up or health.broken:
        chosen = digestible
    else:
        chosen = [(not first.group and _only(candidate.ids[0], digestible)) or _oldest(digestible)]
    chosen += _earlier_turns(chosen, waiting)
    keys = frozenset(heap.key for heap in chosen if not heap.group) if policy.repeat else frozenset()
    ended = frozenset(_ended(chosen))
    keys = frozenset(key for key in keys if not key.startswith(tuple(ended)))
    decision = Decision((), tuple(chosen), postpone, dedup_keys=keys, ended=ended)
    if len(decision.digest) == 1:
        decision = replace(decision, alone=tuple(decision.digest), together=())
    return _paced(decision, ready, health, policy, now)


def _each(heaps: Iterable[Waiting]) -> tuple[int, ...]:
    """Return the oldest deliveries of these, in order, as many as are sent at once; of one group only one."""
    heaps = sorted(heaps, key=lambda heap: heap.ids[0])
    oldest = {heap.group: heap.ids[0] for heap in reversed(heaps) if heap.group}
    free = (number for heap in heaps if not heap.group for number in heap.ids)
    return tuple(sorted((*oldest.values(), *free))[:MOST_AT_ONCE])


def _paced(decision: Decision, ready: Iterable[Waiting], health: Health, policy: Policy, now: datetime) -> Decision:
    """Postpone what is out of pace: a burst goes at once, then one message each pace (a leaky bucket)."""
    if not policy.pace:
        return decision
    used_until = max(health.paced_until, now)
    slots = (now - used_until) // policy.pace + policy.burst
    if slots < 1:
        held = [number for heap in ready for number in heap.ids]
        next_at = used_until - policy.pace * (policy.burst - 1)
        return Decision(postpone={**decision.postpone, next_at: held})
    alone = decision.alone[:slots]
    return replace(decision, alone=alone, paced_until=used_until + policy.pace * (len(alone) or 1))


def _uses_up(health: Health, policy: Policy, now: datetime) -> bool:
    """Return whether the message after the one that is sent now will have to wait for the pace."""
    return max(health.paced_until, now) - policy.pace * (policy.burst - 2) > now


def _only(number: int, heaps: Iterable[Waiting]) -> Waiting | None:
    """Return the delivery of this number, out of its heap."""
    return next((heap._replace(ids=(number,)) for heap in heaps if number in heap.ids), None)


def _oldest(heaps: Iterable[Waiting]) -> Waiting:
    oldest = min(heaps, key=lambda heap: heap.ids[0])
    return oldest._replace(ids=oldest.ids[:1])


def _earlier_turns(chosen: Sequence[Waiting], waiting: Iterable[Waiting]) -> Iterator[Waiting]:
    """Yield what is held of the turns before those that are chosen: told later, it would have the last word."""
    newest = {heap.event.component: heap.ids[-1] for heap in _turns(chosen)}
    if not newest:
        return
    taken = {number for heap in chosen for number in heap.ids}
    for heap in waiting:
        if heap.event.kind in _INCIDENTS and not (heap.group or heap.tried or heap.busy):
            before = heap.before(newest.get(heap.event.component, 0))
            if ids := [number for number in before.ids if number not in taken]:
                yield before._replace(ids=ids)


def _ended(chosen: Iterable[Waiting]) -> Iterator[str]:
    """Yield how the keys of the dedup windows begin that the newest of the chosen turns end."""
    newest = {heap.event.component: heap.event.kind for heap in _turns(chosen)}
    for component, kind in newest.items():
        yield turn(component, Kind.FAILED if kind is Kind.RECOVERED else Kind.RECOVERED)


def _turns(heaps: Iterable[Waiting]) -> list[Waiting]:
    """Return those that are turns of incidents that nothing else keeps in order, the newest last."""
    turns = (heap for heap in heaps if heap.event.kind in _INCIDENTS and not heap.group)
    return sorted(turns, key=lambda heap: heap.ids[-1])


def _in_order(waiting: Iterable[Waiting]) -> Iterator[Waiting]:
    """Leave out what follows an unfinished delivery of its group: an end must not overtake its beginning."""
    first: dict[str, int] = {}
    for heap in waiting:
        if heap.group and (heap.busy or heap.tried):
            first[heap.group] = min(heap.ids[0], first.get(heap.group, heap.ids[0]))
    for heap in waiting:
        stop = first.get(heap.group)
        if stop is None:
            yield heap
        elif heap.ids[0] == stop and not heap.busy:  # it goes first, and alone
            yield heap._replace(ids=heap.ids[:1])
        elif (part := heap.before(stop)).ids:
            yield part


def backoff(attempts: int, draw: float) -> timedelta:
    """Return the wait after so many failed attempts: 1 s, doubled up to 1 h, with jitter; `draw` in [0, 1)."""
    return min(jittered(exponential(FIRST_BACKOFF, attempts, LONGEST_BACKOFF), draw), LONGEST_BACKOFF)


def cooldown(trips: int, first: timedelta) -> timedelta:
    """Return how long a receiver rests after its breaker opened for the `trips`-th time in a row."""
    return exponential(first, trips, max(first, LONGEST_COOLDOWN))
