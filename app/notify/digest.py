"""Many events in one: none is dropped, all are counted. PostgreSQL tallies them; here they get a title."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from app.core.events import NOTIFICATIONS, Event, Kind, Tally
from app.notify.format import timestamp


def digest(tallies: Sequence[Tally], newest: Event) -> Event:
    """Return one event for many, of which `newest` is the last. Equal ones keep component and title.

    Incidents (failures and recoveries of one component) become the newest of them: that is how things stand.
    """
    tallies = tuple(sorted(tallies, key=lambda tally: (-tally.severity.rank, tally.component, tally.title)))
    total = sum(tally.events for tally in tallies)
    first, last = min(tally.first for tally in tallies), max(tally.last for tally in tallies)
    first, last = (moment.replace(microsecond=0) for moment in (first, last))
    detail = f"{total} events between {timestamp(first)} and {timestamp(last)}"
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
