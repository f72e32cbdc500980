"""Events that people are notified of: public texts and whole numbers, never a row's content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

#: The component of events about several sweepers, or about the delivery of notifications itself.
NOTIFICATIONS = "notifications"


class Severity(StrEnum):
    """How loud an event is."""

    INFO = "info"
    WARN = "warn"
    ERROR = "error"

    @property
    def rank(self) -> int:
        """The severity's place in their order: the louder, the greater."""
        return list(Severity).index(self)


class Kind(StrEnum):
    """What an event is about; sinks that open and close incidents depend on it."""

    SWEPT = "swept"
    FAILED = "failed"
    RECOVERED = "recovered"
    NOTICE = "notice"
    DIGEST = "digest"
    TEST = "test"


@dataclass(frozen=True)
class Tally:
    """Equal events, counted: how many, when the first and the last happened, and the sums of their numbers."""

    component: str
    severity: Severity
    title: str
    events: int
    first: datetime
    last: datetime
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """Something that people are notified of. `metadata` holds counts, `tallies` the events of a digest."""

    component: str
    severity: Severity
    title: str
    detail: str = ""
    metadata: Mapping[str, int] = field(default_factory=dict)
    kind: Kind = Kind.SWEPT
    tallies: tuple[Tally, ...] = ()

    @property
    def routing_severity(self) -> Severity:
        """The severity it is routed by: who is notified of a failure is notified of its end."""
        return Severity.ERROR if self.kind in (Kind.RECOVERED, Kind.TEST) else self.severity


@dataclass(frozen=True)
class Notification:
    """An event on its way to a sink. `id` is the same on every attempt and in every sink; `time` is aware, UTC.

    `deployment` is the name of whose event it is, empty where nobody is to read it; `replays` is how often its delivery
    was replayed by hand.
    """

    id: str
    time: datetime
    event: Event
    deployment: str = ""
    replays: int = 0
