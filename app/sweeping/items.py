"""A strategy that goes through a list, as many of its items in a step as one statement takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

import psycopg
import structlog

from app.core.errors import Failure
from app.sweeping.scans.refusals import step_aside
from app.sweeping.strategy import Run, Step, Strategy

log = structlog.get_logger("sweep")

T = TypeVar("T")

#: Items that one statement takes at most.
MOST_ITEMS = 256


class Items(Strategy, Generic[T]):
    """Go through a list, as many items a step as one statement takes, from where the run before had no more time.

    `work` is given some of the items and returns counts. When PostgreSQL refuses these, they are taken by halves, until
    the one that cannot be done is alone: it is counted as `failed`, told under its `name`, and the others are done.
    """

    def __init__(
        self,
        items: Sequence[T],
        work: Callable[[Run, Sequence[T]], Mapping[str, int]],
        name: Callable[[T], Mapping[str, str]],
    ) -> None:
        """`name` says in the log what failed, in words from the configuration, never from a row."""
        self._items = items
        self._work = work
        self._name = name
        #: How many items are done, and how many of the next ones are tried at once.
        self._start, self._done, self._size = 0, 0, MOST_ITEMS

    def step(self, run: Run, *, over: bool) -> Step:
        """Do the next items' work."""
        del over
        start = self._start = run.position if run.position < len(self._items) else 0
        order = [*self._items[start:], *self._items[:start]]
        chosen = order[self._done : self._done + self._size]
        counts = step_aside(run, lambda: self._work(run, chosen)) if chosen else {}
        if isinstance(counts, Failure) and len(chosen) > 1:
            self._size = len(chosen) // 2
            return Step({}, last=False, resume_at=self._position(start))
        if isinstance(counts, Failure):
            log.warning("one target failed, the others go on", **self._name(chosen[0]), **counts._asdict())
            self.refused(run, chosen[0], counts)
            counts = {"failed": 1}
        else:
            self._size = min(self._size * 2, MOST_ITEMS)
        self._done += len(chosen)
        return Step(counts, self._done >= len(order), self._position(start))

    def refused(self, run: Run, item: T, failure: Failure) -> None:
        """Do what is to be done for an item that PostgreSQL refuses; it is counted and told."""

    @property
    def resume_at(self) -> int:
        """The item that the next run goes on with."""
        return self._position(self._start)

    def recover(self, error: psycopg.Error) -> bool:
        """Take fewer items after a step that was too slow."""
        slower = isinstance(error, psycopg.errors.QueryCanceled) and self._size > 1
        self._size = max(1, self._size // 4) if slower else self._size
        return slower

    def _position(self, start: int) -> int:
        return (start + self._done) % len(self._items) if self._items else 0
