"""Events: what people are told. A sink is a function that takes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import structlog

from app.errors import describe

log = structlog.get_logger("events")


class Severity(StrEnum):
    """How loud an event is."""

    INFO = "info"
    WARN = "warn"
    ERROR = "error"


@dataclass(frozen=True)
class Event:
    """Something worth telling: public words and numbers, never a row's content."""

    component: str
    severity: Severity
    title: str
    detail: str = ""
    metadata: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Sink:
    """A place that events go to."""

    name: str
    deliver: Callable[[Event], None]


def sink(name: str) -> Callable[[Callable[[Event], None]], Sink]:
    """Declare the decorated function as the sink `name`. It delivers one event, or raises."""

    def declare(deliver: Callable[[Event], None]) -> Sink:
        return Sink(name, deliver)

    return declare


class Fanout:
    """Hands each event to every sink; one that fails does not keep it from the others."""

    def __init__(self, sinks: Iterable[Sink]) -> None:
        self._sinks = tuple(sinks)

    def publish(self, event: Event) -> None:
        """Deliver to all sinks. Never raises: a sweep does not fail because somebody could not be told."""
        for receiver in self._sinks:
            try:
                receiver.deliver(event)
            except Exception as error:  # noqa: BLE001 - whatever a sink raises, its siblings still get the event
                log.error("notification not delivered", sink=receiver.name, error=describe(error).error)
