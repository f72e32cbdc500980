"""One bounded piece of a sweep, and the walk that makes it bounded.

None of the api's indexes serves a sweep in full: most expired wraps are consumed and out of the partial index,
claimed jobs have none, old secrets are found among the missing ones. So each sweep reads its whole table; what
matters is that no transaction reads or locks much of it. The walk goes through the heap by page ranges (a TID range
scan, PostgreSQL 14 and newer), each range in a transaction of its own, and stops early in a range when enough rows
are found. It is immune to dead index entries, stale statistics and plans that flip.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, LiteralString, TypeVar

import psycopg
import structlog

from app.core.errors import describe
from app.sweeping.schedule import Slot, moment

if TYPE_CHECKING:
    from psycopg import Cursor

    from app.sweeping.sweeper import SweeperSettings

log = structlog.get_logger("sweep")

S = TypeVar("S", bound="SweeperSettings")
T = TypeVar("T")

#: Rows a transaction may change, and pages it may read: the first guess, which is safe everywhere, and the range
#: between "not only overhead" and "100 ms on a slow disk".
FIRST_ROWS, FEWEST_ROWS, MOST_ROWS = 500, 50, 5_000
FIRST_PAGES, FEWEST_PAGES, MOST_PAGES = 250, 25, 2_500
#: What a transaction is meant to take, seconds, commit included.
AIM = 0.020

_PAGES = "SELECT pg_relation_size(to_regclass(%(table)s)) / current_setting('block_size')::int AS pages"


class Steering:
    """Chooses the size of the next transaction by how long the last one took, in both directions.

    Rows and pages are steered apart: what was learned from reading pages without anything to do says nothing of how
    long it takes to change rows, and the first full page after many empty ones must not meet a huge allowance.
    """

    def __init__(self) -> None:
        self.rows = FIRST_ROWS
        self.pages = FIRST_PAGES

    def learn(self, seconds: float, found: int) -> None:
        """Move towards AIM by at most a factor of two up and four down; `found` rows were there to be changed."""
        factor = min(2.0, max(0.25, AIM / max(seconds, 1e-6)))
        full = found >= self.rows
        if full or (factor < 1 and found):
            self.rows = int(min(MOST_ROWS, max(FEWEST_ROWS, self.rows * factor)))
        if not full:
            self.pages = int(min(MOST_PAGES, max(FEWEST_PAGES, self.pages * factor)))


class Walk:
    """Where a walk through a table's pages stands: from `position` to the end, then from the start to there."""

    def __init__(self, position: int, pages: int) -> None:
        start = position if position < pages else 0
        self._ranges = [(start, pages)] + ([(0, start)] if start else [])
        self._pages = pages
        self._page, self._item = start, 1

    @property
    def done(self) -> bool:
        """Whether every page has been visited."""
        return self._page >= self._ranges[0][1] and len(self._ranges) == 1

    @property
    def position(self) -> int:
        """The page that a successor should start with."""
        return self._page

    def grow(self, pages: int) -> None:
        """Add the pages that the table has grown by: what was updated meanwhile has moved there."""
        if pages > self._pages:
            self._ranges.append((self._pages, pages))
            self._pages = pages

    def next(self, pages: int) -> tuple[str, str]:
        """Give the next range, of at most so many pages, as two tuple ids, the second one excluded."""
        if self._page >= self._ranges[0][1] and len(self._ranges) > 1:
            self._ranges.pop(0)
            self._page, self._item = self._ranges[0][0], 1
        stop = min(self._page + pages, self._ranges[0][1])
        return f"({self._page},{self._item})", f"({stop},0)"

    def moved(self, stop: str, last: str | None) -> None:
        """Go on behind `last`, the last row found when a range was cut short, else at `stop`."""
        page, item = (last or stop).strip("()").split(",")
        self._page, self._item = int(page), int(item) + 1


@dataclass
class Batch(Generic[S]):
    """What a sweeper's function gets: the run's settings and times, and the ways to change rows.

    `done` says whether the last thing that was asked for left nothing to do; the runner ends the run then. `over` says
    that the run's time is up, so that nothing new is begun; `pending`, that something begun `outside` keeps it open.
    """

    cursor: Cursor[dict[str, Any]]
    settings: S
    table: str
    slot: Slot
    now: datetime
    cutoff: datetime
    position: int = 0
    done: bool = False
    found: int = 0
    outside: Any = None
    over: bool = False
    pending: bool = False

    def __post_init__(self) -> None:
        self.steering = Steering()
        self._walk: Walk | None = None
        self._items: Iterator[Any] | None = None
        self._after: object = "-infinity"

    @property
    def slot_start(self) -> datetime:
        """The start of the slot that is being run, aware, UTC."""
        return moment(self.slot)

    @property
    def resume_at(self) -> int:
        """Where the next run should start when this one hands over."""
        return self._walk.position if self._walk else 0

    def walk(self, query: LiteralString) -> dict[str, int]:
        """Run a statement on the next range of pages and give its counts.

        The statement gets `%(start)s`, `%(stop)s` (tuple ids), `%(limit)s` rows and `%(cutoff)s`, and answers with
        one row: how many rows it `found` (at most the limit), the `last` of their tuple ids as text, and counts,
        `changed` among them.
        """
        if self._walk is None:
            pages = self.run(_PAGES, table=self.table)["pages"]
            self._walk = Walk(self.position, pages)
        limit = self.steering.rows
        start, stop = self._walk.next(self.steering.pages)
        row = self.run(query, start=start, stop=stop, limit=limit, cutoff=self.cutoff)
        self.found, last = row.pop("found"), row.pop("last")
        self._walk.moved(stop, last if self.found >= limit else None)
        if self._walk.done:
            self._walk.grow(self.run(_PAGES, table=self.table)["pages"])
        self.done = self._walk.done
        return row

    def drain(self, query: LiteralString) -> dict[str, int]:
        """Run a statement that an index serves in full, again and again until it finds nothing.

        The statement gets `%(after)s`, `%(limit)s` rows and `%(cutoff)s`, and answers with one row: how many rows it
        `found`, the `last` value of the index among them, and counts. The next one goes on after that value: what was
        found before is dead in the index, and reading it again and again would take longer and longer.
        """
        row = self.run(query, after=self._after, limit=self.steering.rows, cutoff=self.cutoff)
        self.found, last = row.pop("found"), row.pop("last")
        self._after = last if last is not None else self._after
        self.done = self.found == 0
        return row

    def each(self, items: Sequence[T]) -> T | None:
        """Give the next of a fixed list of things to do, one a batch; None when there is none."""
        if self._items is None:
            self._items = iter(items)
            self._left = len(items)
        item: T | None = next(self._items, None)
        self._left -= 1
        self.done = self._left <= 0
        return item

    def run(self, query: LiteralString, **parameters: object) -> dict[str, Any]:
        """Execute a statement that answers with one row."""
        row = self.cursor.execute(query, parameters).fetchone()
        if row is None:
            raise RuntimeError("the statement gave no row")
        return row

    def rows(self, query: LiteralString, **parameters: object) -> list[dict[str, Any]]:
        """Execute a statement that answers with any number of rows."""
        return self.cursor.execute(query, parameters).fetchall()

    def attempt(self, query: LiteralString, what: Mapping[str, str], **parameters: object) -> dict[str, Any] | None:
        """Execute a statement that may fail without harm to the rest of the batch; None when it failed.

        `what` names the thing for the log, with words from the configuration, never from a row.
        """
        try:
            with self.cursor.connection.transaction():
                return self.run(query, **parameters)
        except psycopg.errors.QueryCanceled:
            raise  # the lease is gone or time is up: that is not this thing's fault
        except psycopg.DatabaseError as error:
            if self.cursor.connection.closed:
                raise
            log.warning("one target failed, the others go on", **what, **describe(error)._asdict())
            return None

    def report(self, text: str, what: Mapping[str, str]) -> None:
        """Log what an operator should look into, in words of the code and the configuration only."""
        log.warning(text, **what)
