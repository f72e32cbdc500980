"""Many events in one: none is dropped, all are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from app.core.events import NOTIFICATIONS, Event, Kind, Notification, Severity, Tally


def digest(notifications: Sequence[Notification]) -> Event:
    """Return one event for many, which are given oldest first. Equal ones keep component and title, numbers are summed.

    Incidents (failures and recoveries of one component) become the newest of them: that is how things stand.
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
    component = components.pop() if len(components) == 1 else NOTIFICATIONS
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
    for tally in (tally for notification in notifications for tally in _tallies_of(notification)):
        key = (tally.component, tally.severity, tally.title)
        sums[key] = _plus(sums[key], tally) if key in sums else tally
    return tuple(sorted(sums.values(), key=lambda tally: (-tally.severity.rank, tally.component, tally.title)))


def _tallies_of(notification: Notification) -> Iterator[Tally]:
    event = notification.event
    if event.tallies:
        yield from event.tallies
    else:
        yield Tally(
            event.component, event.severity, event.title, 1, notification.time, notification.time, dict(event.metadata)
        )


def _plus(tally: Tally, other: Tally) -> Tally:
    names = dict.fromkeys((*tally.counts, *other.counts))
    counts = {name: tally.counts.get(name, 0) + other.counts.get(name, 0) for name in names}
    first, last = min(tally.first, other.first), max(tally.last, other.last)
    return replace(tally, events=tally.events + other.events, first=first, last=last, counts=counts)
