"""A scan of a table's heap, page by page.

It goes by ranges of pages (a TID range scan, PostgreSQL 14 and newer), each in a transaction of its own, and stops
early in a range when enough rows are found. It is immune to dead index entries, stale statistics and plans that flip.
Where nothing is due it only reads, in statements that lock nothing and need no fence.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg

from app.storage.postgres import only_row
from app.sweeping.scans.scan import Scan
from app.sweeping.scans.sql import PageSql
from app.sweeping.scans.tables import PAGES
from app.sweeping.strategy import Run, Step, Took

if TYPE_CHECKING:
    from psycopg import Cursor

#: What a statement that only looks is meant to take, seconds, and the pages that it may read: nobody waits for it.
LOOK_AIM = 0.1
FIRST_LOOK, FEWEST_LOOK, MOST_LOOK = 10_000, 100, 65_536


class PageRanges:
    """Where a scan of a table's pages stands: from `position` to the end, then from the start to there."""

    def __init__(self, position: int, pages: int) -> None:
        start = position if position < pages else 0
        self._ranges = [(start, pages)] + ([(0, start)] if start else [])
        self._pages = pages
        self._page, self._item = start, 1
        #: How many pages it has left behind.
        self.visited = 0

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
        """Return the next range, of at most `pages` pages, as two tuple ids, the second one excluded."""
        if self._page >= self._ranges[0][1] and len(self._ranges) > 1:
            self._ranges.pop(0)
            self._page, self._item = self._ranges[0][0], 1
        stop = min(self._page + pages, self._ranges[0][1])
        return f"({self._page},{self._item})", f"({stop},0)"

    def move(self, place: str) -> None:
        """Go on at this tuple id."""
        self._move(*_parsed(place))

    def move_behind(self, last: str) -> None:
        """Go on behind this tuple id, the last row found when a range was cut short."""
        page, item = _parsed(last)
        self._move(page, item + 1)

    def _move(self, page: int, item: int) -> None:
        self.visited += page - self._page
        self._page, self._item = page, max(1, item)


def _parsed(place: str) -> tuple[int, int]:
    page, item = place.strip("()").split(",")
    return int(page), int(item)


class PageScan(Scan):
    """Scan a table's heap, by the statements of `app.sweeping.scans.sql`.

    It begins with as many rows as it may change, wherever they are in a wide range. Where they lie close together it
    goes on by narrow ranges, whole; where there are none it looks ahead. A row that is free is left to the next run
    when what else is to be written with it is held.

    A partitioned table is scanned as one: the same range of each of its partitions at a time. So a row that is stepped
    around there hides, until the next run, those that stand at the very same place of other partitions.
    """

    _ranges: PageRanges
    _run: Run

    def __init__(self, sql: PageSql, older_than: timedelta = timedelta(0)) -> None:
        super().__init__(sql.gentle, older_than)
        self.sql = sql
        #: The range that a step has been given, and its pages.
        self._stop = ""
        self._sized: Cursor[dict[str, Any]] | None = None
        self._span = 0
        #: How many pages the next look reads, and whether there is to be one.
        self._look_pages = FIRST_LOOK
        self._looking = False

    @property
    def resume_at(self) -> int:
        """The page that the next run goes on with."""
        return self._ranges.position if self._begun else 0

    @property
    def looks(self) -> bool:
        """Whether the last step has found nothing, and there are pages left."""
        return self._looking and not self._ranges.done

    def look(self, read: Callable[..., dict[str, Any]], over: Callable[[], bool]) -> None:
        """Read on to the first row that is due."""
        while not (self._ranges.done or over() or self._enough(self._run)):
            self._looking = not self._look(read)
            if not self._looking:
                break

    def _look(self, read: Callable[..., dict[str, Any]]) -> bool:
        """Read one range; return whether anything is due in it."""
        start, stop = self._ranges.next(self._share(self._look_pages))
        started = time.perf_counter()
        try:
            first = read(self.sql.look, **self.words, start=start, stop=stop, cutoff=self._run.cutoff)["first"]
        except psycopg.errors.QueryCanceled:
            if self._look_pages == FEWEST_LOOK:
                raise
            self._look_pages = max(FEWEST_LOOK, self._look_pages // 4)
            return False
        factor = min(4.0, max(0.25, LOOK_AIM / max(time.perf_counter() - started, 1e-6)))
        self._look_pages = int(min(MOST_LOOK, max(FEWEST_LOOK, self._look_pages * factor)))
        if first is None:
            self._ranges.move(stop)
        elif not self._run.partitioned:  # else it is the first of some partition
            self._ranges.move(first)
        return first is not None

    def _enough(self, run: Run) -> bool:
        return run.most_pages is not None and self._ranges.visited >= run.most_pages

    def _share(self, pages: int) -> int:
        """Return so many pages, or what is left of the run's share."""
        most = self._run.most_pages
        return pages if most is None else max(1, min(pages, most - self._ranges.visited))

    def _observe(self, took: Took) -> None:
        if self._asked is None or not self._span:
            super()._observe(took)
        elif self.sizer.dense:
            self.sizer.observe_span(took.work, took.round_trip, self._span, self._found)
        else:
            self.sizer.observe(took.work, took.round_trip, self._found, self._span)

    def _begin(self, run: Run) -> None:
        super()._begin(run)
        self._ranges = PageRanges(run.position, run.pages)

    def _next(self) -> dict[str, object]:
        start, stop = self._ranges.next(self._share(self.sizer.pages))
        return {"start": start, "stop": stop}

    def _pass(self, last: Any) -> None:
        self._ranges.move_behind(last)

    def _send(self, run: Run) -> Cursor[dict[str, Any]] | None:
        whole = self.sizer.dense and run.most_rows is None
        start, self._stop = self._ranges.next(self._share(self.sizer.span if whole else self.sizer.pages))
        query = self.sql.whole if whole else self.sql.listed
        answer = self._sent(run, query, start=start, stop=self._stop)
        self._sized = run.send(PAGES, table=run.table)
        return answer

    def ask(self, run: Run) -> None:
        """Send a direct step's statement, unless a look is to go on."""
        self._run = run
        self.sizer.rows_per_page = run.rows_per_page * run.partitions
        super().ask(run)

    def _direct(self) -> bool:
        return super()._direct() and not self._looking

    def _advance(self, run: Run) -> Step:
        ranges, self._span = self._ranges, 0
        counts: dict[str, int] = {}
        looked = self._looking
        if looked:
            self._found = 0
        elif self._asked is not None:
            counts = self._change_pages(run, self._asked)
        else:
            counts = self._change_rows(run)
        if ranges.done:
            ranges.grow(run.pages if looked else self._pages(run))
        self._looking = self._found == 0
        return Step(counts, ranges.done, ranges.position, enough=self._enough(run))

    def _pages(self, run: Run) -> int:
        """Return how large the table is, after the step."""
        if self._asked is not None and self._sized is not None:
            return int(only_row(self._sized)["pages"])
        return int(run.row(PAGES, table=run.table)["pages"])

    def _change_pages(self, run: Run, asked: Cursor[dict[str, Any]]) -> dict[str, int]:
        """Read how many rows a direct step has changed."""
        before = self._ranges.position
        counts = self._answer(run, asked)
        last = counts.pop("last", None)
        if last is None or self._found < self.limit:
            self._ranges.move(self._stop)
        elif not run.partitioned:
            self._ranges.move_behind(last)
        # Else what is left may be anywhere in the range, which is swept again: what was found is gone from it.
        end = self._ranges.position if not run.partitioned or last is None else _parsed(last)[0]
        self._span = max(1, end - before)
        return counts

    def _change_rows(self, run: Run) -> dict[str, int]:
        """Do a gentle step."""
        ranges, limit = self._ranges, self.limit
        end = str(self._next()["stop"])
        counts = self._find(run, limit)
        last = counts.pop("last")
        if self._found < limit:
            ranges.move(end)
        elif not run.partitioned:
            ranges.move_behind(last)
        # Else what is left may be anywhere in the range, which is swept again: what was found is gone from it.
        return counts
