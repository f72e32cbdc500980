"""Three ways through the work of a sweep: the pages of a table, the keys of an index, the items of a list.

None of the api's indexes serves most sweeps in full: most expired wraps are consumed and out of the partial index,
claimed jobs have none, old secrets are found among the missing ones. So such a sweep reads its whole table; what
matters is that no transaction reads or locks much of it. A page scan goes through the heap by ranges of pages (a TID
range scan, PostgreSQL 14 and newer), each range in a transaction of its own, and stops early in a range when enough
rows are found. It is immune to dead index entries, stale statistics and plans that flip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Generic, LiteralString, TypeVar

from app.sweeping.batch_size import BatchSizer
from app.sweeping.strategy import Run, Step, Strategy

T = TypeVar("T")

_PAGES = "SELECT pg_relation_size(to_regclass(%(table)s)) / current_setting('block_size')::int AS pages"


class PageRanges:
    """Where a scan of a table's pages stands: from `position` to the end, then from the start to there."""

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
        """Return the next range, of at most `pages` pages, as two tuple ids, the second one excluded."""
        if self._page >= self._ranges[0][1] and len(self._ranges) > 1:
            self._ranges.pop(0)
            self._page, self._item = self._ranges[0][0], 1
        stop = min(self._page + pages, self._ranges[0][1])
        return f"({self._page},{self._item})", f"({stop},0)"

    def move(self, stop: str, last: str | None) -> None:
        """Go on behind `last`, the last row found when a range was cut short, else at `stop`."""
        page, item = (last or stop).strip("()").split(",")
        self._page, self._item = int(page), int(item) + 1


class _Scan(Strategy):
    """One statement, again and again, on a number of rows that adapts to how long it takes.

    The statement gets `%(limit)s` rows and `%(cutoff)s`, and answers with one row: how many rows it `found` (at most
    the limit), the `last` of them, and counts, `changed` among them.
    """

    def __init__(self, query: LiteralString, *, older_than: timedelta = timedelta(0)) -> None:
        self.older_than = older_than
        self.sizer = BatchSizer()
        self._query: LiteralString = query
        self._found = 0

    def committed(self, seconds: float) -> None:
        """Adapt the size of the next step."""
        self.sizer.observe(seconds, self._found)


class PageScan(_Scan):
    """Scan a table's heap. The statement also gets `%(start)s` and `%(stop)s`; those and `last` are tuple ids."""

    _ranges: PageRanges | None = None

    def step(self, run: Run, *, over: bool) -> Step:
        """Sweep the next range of pages."""
        del over
        ranges = self._ranges = self._ranges or PageRanges(run.position, self._size(run))
        limit = self.sizer.rows
        start, stop = ranges.next(self.sizer.pages)
        counts = run.row(self._query, start=start, stop=stop, limit=limit, cutoff=run.cutoff)
        self._found, last = counts.pop("found"), counts.pop("last")
        ranges.move(stop, last if self._found >= limit else None)
        if ranges.done:
            ranges.grow(self._size(run))
        return Step(counts, ranges.done, ranges.position)

    def _size(self, run: Run) -> int:
        pages: int = run.row(_PAGES, table=run.table)["pages"]
        return pages


class KeysetScan(_Scan):
    """Scan an index that serves the sweep in full, until nothing is found. The statement also gets `%(after)s`.

    `last` is the value of the index that the next step goes on after: what was found before is dead in the index, and
    reading it again and again would take longer and longer.
    """

    _after: object = "-infinity"

    def step(self, run: Run, *, over: bool) -> Step:
        """Sweep the next keys."""
        del over
        counts = run.row(self._query, after=self._after, limit=self.sizer.rows, cutoff=run.cutoff)
        self._found, last = counts.pop("found"), counts.pop("last")
        self._after = self._after if last is None else last
        return Step(counts, self._found == 0)


class Items(Strategy, Generic[T]):
    """Go through a list, one item a step."""

    def __init__(self, items: Sequence[T], work: Callable[[Run, T], Mapping[str, int]]) -> None:
        self._items = list(items)
        self._work = work

    def step(self, run: Run, *, over: bool) -> Step:
        """Do the next item's work."""
        del over
        counts = self._work(run, self._items.pop(0)) if self._items else {}
        return Step(counts, not self._items)
