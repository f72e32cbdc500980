"""Many events told as one: nothing is dropped, everything is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime

from app.core.events import Event, Kind, Notification, Severity, Tally

#: The component of events that are about more than one sweeper, or about the delivery itself.
OWN = "notifications"


def digest(notifications: Sequence[Notification]) -> Event:
    """Combine events, oldest first. Equal ones keep their component and title; their numbers are summed.

    Incidents (failures and recoveries of one component) end as the newest of them: that is how things stand.
    """
    tallies = _tally(notifications)
    total = sum(tally.events for tally in tallies)
    first, last = min(tally.first for tally in tallies), max(tally.last for tally in tallies)
    detail = f"{total} events between {first:%Y-%m-%dT%H:%M:%SZ} and {last:%Y-%m-%dT%H:%M:%SZ}"
    newest = notifications[-1].event
    if len(tallies) == 1:
        (only,) = tallies
        return replace(newest, detail=detail, metadata={**only.counts, "events": total}, tallies=tallies)
    components = {tally.component for tally in tallies}
    if len(components) == 1 and newest.kind in (Kind.FAILED, Kind.RECOVERED):
        return replace(newest, detail=detail, metadata={"events": total}, tallies=tallies)
    loudest = max((tally.severity for tally in tallies), key=lambda severity: severity.rank)
    component = components.pop() if len(components) == 1 else OWN
    return Event(component, loudest, f"{total} notifications", detail, _sums(tallies), Kind.DIGEST, tallies)


def _sums(tallies: Iterable[Tally]) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for tally in tallies:
        sums["events"] += tally.events
        sums[f"{tally.component}.events"] += tally.events
        for name, number in tally.counts.items():
            sums[f"{tally.component}.{name}"] += number
    return dict(sums)


def _tally(notifications: Iterable[Notification]) -> tuple[Tally, ...]:
    sums: dict[tuple[str, Severity, str], Tally] = {}
    for one in (tally for notification in notifications for tally in _tallies_of(notification)):
        key = (one.component, one.severity, one.title)
        sums[key] = _plus(sums[key], one) if key in sums else one
    return tuple(sorted(sums.values(), key=lambda tally: (-tally.severity.rank, tally.component, tally.title)))


def _tallies_of(notification: Notification) -> Iterator[Tally]:
    event = notification.event
    if event.tallies:
        yield from event.tallies
    else:
        yield Tally(
            event.component, event.severity, event.title, 1, notification.time, notification.time, dict(event.metadata)
        )


def _plus(one: Tally, other: Tally) -> Tally:
    names = dict.fromkeys((*one.counts, *other.counts))
    counts = {name: one.counts.get(name, 0) + other.counts.get(name, 0) for name in names}
    first: datetime = min(one.first, other.first)
    return replace(one, events=one.events + other.events, first=first, last=max(one.last, other.last), counts=counts)
