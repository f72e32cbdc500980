"""Spans as the other rooms see them: while traces are off nothing happens in one, and OpenTelemetry is not loaded.

What a span carries are names and numbers: a text that could be a URL, a statement or a row's content does not fit. An
error is its class and SQLSTATE; its text and its traceback are never read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import TracebackType
from typing import Literal, Protocol, Self

from app.core.errors import Failure, NotDue, SweepFailed, describe

#: What is worked on: a tick is sent, run, batch by batch; deliveries of one receiver are made, attempt by attempt.
Name = Literal["tick", "run", "batch", "delivery", "attempt", "poll"]
Fact = str | int | float | None

# Names of ours, ids, class names, SQLSTATEs: nothing with a slash, an `@`, a quote or a space in it.
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
_INT64 = range(-(2**63), 2**63)


class Span:
    """A piece of work that is under way. This one is for nobody: the one there is while traces are off."""

    def __enter__(self) -> Self:
        """Begin it: what is begun from now on in this thread or task is a part of it."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End it, as a failed one when an error comes through."""

    def note(self, **facts: Fact) -> None:
        """Add facts; what is neither a name nor a number is left out."""

    def failed(self, error: BaseException) -> None:
        """Mark it as failed by an error."""


class Tracer(Protocol):
    """What makes spans that somebody reads."""

    def span(self, name: Name, about: str, facts: Mapping[str, Fact]) -> Span:
        """Return a new span, a part of the one that is under way."""
        ...

    def note(self, facts: Mapping[str, Fact]) -> None:
        """Add facts to the span that is under way."""
        ...

    def traceparent(self) -> str | None:
        """Return the name of the span that is under way, as W3C's Trace Context has it."""
        ...

    def resume(self, traceparent: str) -> object:
        """Have a span of another process be under way here; return what `leave` takes."""
        ...

    def leave(self, resumed: object) -> None:
        """Have it be so no longer."""
        ...

    def close(self) -> None:
        """Send what is left, for a short while."""
        ...


_NOBODY = Span()
_tracer: Tracer | None = None


def use(tracer: Tracer | None) -> None:
    """Have spans made by `tracer` from now on, None for none."""
    global _tracer  # noqa: PLW0603 - a process has one, from its boot on
    _tracer = tracer


def span(name: Name, about: str, **facts: Fact) -> Span:
    """Return a span, to be used as a context manager. `about` is the sweeper, receiver or endpoint that it is about."""
    return _NOBODY if _tracer is None else _tracer.span(name, about, facts)


def note(**facts: Fact) -> None:
    """Add facts to the span that is under way."""
    if _tracer is not None:
        _tracer.note(facts)


def traceparent() -> str | None:
    """Return the name of the span that is under way, None where there is none."""
    return None if _tracer is None else _tracer.traceparent()


def resume(traceparent: str) -> object:
    """Have a span of another process be under way in this thread; return what `leave` takes."""
    return None if _tracer is None else _tracer.resume(traceparent)


def leave(resumed: object) -> None:
    """Have what was resumed be under way no longer."""
    if _tracer is not None:
        _tracer.leave(resumed)


def close() -> None:
    """Send what is left, for a short while; the process is about to end."""
    if _tracer is not None:
        _tracer.close()


def fits(fact: Fact) -> bool:
    """Return whether a fact may be in a span."""
    if isinstance(fact, str):
        return _NAME.fullmatch(fact) is not None
    return fact is not None and (isinstance(fact, float) or fact in _INT64)


def failure(error: BaseException) -> Failure | None:
    """Return what may be shown of an error, None for one that is none: a tick with nothing to do."""
    if isinstance(error, NotDue):
        return None
    return error.failure if isinstance(error, SweepFailed) else describe(error)
