"""A measurement: the same work done in two ways, by turns: the best that the machine can do, and ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

#: One way to do the work: does it once and returns what was measured, by the names of figures.
Arm = Callable[[], Mapping[str, float]]


class NotHere(Exception):
    """What is to be measured is not in this revision; the text says what is missing."""


class Figure(NamedTuple):
    """A number that an arm returns, and what it is meant to be."""

    name: str
    text: str
    unit: str = ""
    goal: float | None = None
    #: Whether the goal is about ours divided by the best, or about ours alone.
    ratio: bool = False
    #: Whether less is better.
    less: bool = False

    def met(self, value: float) -> bool:
        """Return whether a value, or a ratio, meets the goal."""
        assert self.goal is not None
        return value <= self.goal if self.less else value >= self.goal


class Arms(NamedTuple):
    """Both ways to do the work; without a baseline ours stands alone."""

    baseline: Arm | None
    ours: Arm


class Round(NamedTuple):
    """What both arms have returned, one after the other."""

    baseline: Mapping[str, float]
    ours: Mapping[str, float]


class Size(NamedTuple):
    """How much is measured."""

    quick: bool = False
    full: bool = False
    #: What is taken of the usual numbers, at least 1.
    share: float = 1.0

    def of(self, usual: int, *, quick: int, full: int | None = None) -> int:
        """Return a number of rows, or of whatever, for this size."""
        number = quick if self.quick else (full or usual) if self.full else usual
        return max(1, int(number * self.share))


@dataclass(frozen=True)
class Measurement:
    """One measurement. `open` starts what it needs and yields the arms; its end leaves nothing running."""

    name: str
    what: str
    #: What the baseline is, in words.
    best: str
    figures: tuple[Figure, ...]
    open: Callable[[Size], AbstractContextManager[Arms]]

    def alternate(self, size: Size, rounds: int, seconds: float, say: Callable[[str], None]) -> list[Round]:
        """Take the arms by turns, so many times, or fewer when so many seconds have passed. Raises NotHere."""
        say("starts")
        with self.open(size) as arms:
            ends = time.monotonic() + seconds
            found: list[Round] = []
            while len(found) < rounds and (not found or time.monotonic() < ends):
                say(f"round {len(found) + 1} of {rounds}, the best")
                baseline = arms.baseline() if arms.baseline else {}
                say(f"round {len(found) + 1} of {rounds}, ours")
                found.append(Round(baseline, arms.ours()))
            return found


def measurement(
    name: str, what: str, *, best: str, figures: tuple[Figure, ...]
) -> Callable[[Callable[[Size], Iterator[Arms]]], Measurement]:
    """Declare a measurement from the generator that opens it."""

    def declare(function: Callable[[Size], Iterator[Arms]]) -> Measurement:
        return Measurement(name, what, best, figures, contextmanager(function))

    return declare
