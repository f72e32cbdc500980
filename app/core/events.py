"""Events: what people are told, in public words and whole numbers, never a row's content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class Severity(StrEnum):
    """How loud an event is."""

    INFO = "info"
    WARN = "warn"
    ERROR = "error"

    @property
    def rank(self) -> int:
        """Order severities: the louder, the greater."""
        return list(Severity).index(self)


class Kind(StrEnum):
    """What an event is about; sinks that keep incidents open need to know."""

    SWEPT = "swept"
    FAILED = "failed"
    RECOVERED = "recovered"
    NOTICE = "notice"
    DIGEST = "digest"
    TEST = "test"


@dataclass(frozen=True)
class Tally:
    """Equal events, counted: how many, between when and when, and the sums of their numbers."""

    component: str
    severity: Severity
    title: str
    events: int
    first: datetime
    last: datetime
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """Something worth telling."""

    component: str
    severity: Severity
    title: str
    detail: str = ""
    metadata: Mapping[str, int] = field(default_factory=dict)
    kind: Kind = Kind.SWEPT
    tallies: tuple[Tally, ...] = ()

    @property
    def routing_severity(self) -> Severity:
        """The severity it is routed by: whoever is told of a failure is told of its end."""
        return Severity.ERROR if self.kind in (Kind.RECOVERED, Kind.TEST) else self.severity


@dataclass(frozen=True)
class Notification:
    """An event on its way to a sink. `id` is the same on every attempt and in every sink; `time` is aware, UTC."""

    id: str
    time: datetime
    event: Event
