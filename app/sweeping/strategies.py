"""Three ways through the work of a sweep: the pages of a table, the keys of an index, the items of a list.

None of the api's indexes serves most sweeps in full: most expired wraps are consumed and out of the partial index,
claimed jobs have none, old secrets are found among the missing ones. So such a sweep reads its whole table; what
matters is that no transaction reads or locks much of it. A page scan goes through the heap by ranges of pages (a TID
range scan, PostgreSQL 14 and newer), each range in a transaction of its own, and stops early in a range when enough
rows are found. It is immune to dead index entries, stale statistics and plans that flip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Generic, LiteralString, TypeVar

import psycopg
import structlog

from app.core.errors import Failure, describe
from app.sweeping.batch_size import FEWEST_ROWS, BatchSizer
from app.sweeping.scan_sql import PageSql
from app.sweeping.schedule import moment
from app.sweeping.strategy import Run, Step, Strategy

log = structlog.get_logger("sweep")

T = TypeVar("T")
R = TypeVar("R")

#: Items that one statement takes at most.
MOST_ITEMS = 256

# Of a partitioned table the largest partition counts, since a range is one of all of them.
_PAGES = """
SELECT coalesce(max(pg_relation_size(part.relid)), 0) / current_setting('block_size')::int AS pages,
       bool_or(swept.relkind = 'p') AS partitioned
  FROM pg_class AS swept
 CROSS JOIN LATERAL (SELECT swept.oid UNION SELECT relid FROM pg_partition_tree(swept.oid)) AS part (relid)
 WHERE swept.oid = to_regclass(%(table)s)
"""
#: After a row was found held by another session, so many steps leave such rows out in place of waiting for them.
GENTLE_STEPS = 16
_ROW_IS_HELD = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)
#: By whose fault a statement was given up: the lease is gone or its time is up; and somebody holds what it waits for.
SLOW, HELD = (psycopg.errors.QueryCanceled,), (psycopg.errors.LockNotAvailable,)
#: Classes of SQLSTATEs that are not about the rows at hand, but about the statement, its role or the server.
_NOT_BY_ROWS = frozenset({"08", "0A", "25", "26", "28", "3D", "3F", "42", "53", "57", "58"})


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

    def move(self, stop: str) -> None:
        """Go on at this tuple id."""
        page, item = stop.strip("()").split(",")
        self._page, self._item = int(page), max(1, int(item))

    def move_behind(self, last: str) -> None:
        """Go on behind this tuple id, the last row found when a range was cut short."""
        page, item = last.strip("()").split(",")
        self._page, self._item = int(page), int(item) + 1


class _Scan(Strategy):
    """One statement, again and again, on a number of rows that adapts to how long it takes.

    The statement gets `%(limit)s` rows and `%(cutoff)s`, and answers with one row: how many rows it `found` (at most
    the limit), the `last` of them, and counts, `changed` among them; `skipped_locked` are those that others held.
    With `%(look)s` it only finds, and changes nothing.

    A step that took too long is made much smaller, one that a row made fail (by data, constraint or trigger) is
    halved, down to one row. If that one fails, it is stepped around and counted.
    """

    def __init__(self, query: LiteralString, *, older_than: timedelta = timedelta(0)) -> None:
        self.older_than = older_than
        self.sizer = BatchSizer()
        self._query: LiteralString = query
        self._found = 0
        #: How many rows a step takes after one that failed; None while all is well.
        self._fewer: int | None = None
        #: Whether the next step is to begin behind the first row that it finds, and whether one has.
        self._around = False
        self._passed = False
        self._begun = False

    @property
    def limit(self) -> int:
        """How many rows the next step takes at most."""
        return self._fewer or self.sizer.rows

    @property
    def batch_rows(self) -> int | None:
        """How many rows the next run is to begin with: fewer than usual if that was too many."""
        return self.limit if self._fewer is not None or self.limit < FEWEST_ROWS else None

    def recover(self, error: psycopg.Error) -> bool:
        """Make the next step smaller, or step around the one row that is left."""
        slow = isinstance(error, psycopg.errors.QueryCanceled)
        if not slow and not _by_rows(error):
            return False
        if self.limit > 1:
            self._fewer = max(1, self.limit // (4 if slow else 2))
            if slow:
                self.sizer.shrink()
            return True
        self.rows_failed += 1
        if self.rows_failed == 1:
            log.warning("a row could not be swept, the others go on", **describe(error)._asdict())
        self.stuck = not self._passed and not self._around  # else it is the way around that fails
        self._around = True
        return True

    def committed(self, seconds: float) -> None:
        """Adapt the size of the next step."""
        if self._fewer is None:
            self.sizer.observe(seconds, self._found)
        else:
            self._fewer = self._fewer * 2 if self._fewer * 2 < self.sizer.rows else None

    def step(self, run: Run, *, over: bool) -> Step:
        """Sweep the next rows."""
        del over
        if not self._begun:
            self._begin(run)
            self._begun = True
        if self._around:
            self._go_around(run)
        return self._advance(run)

    def _go_around(self, run: Run) -> None:
        """Go on behind the row that cannot be swept."""
        last = self._sweep(run, 1, look=True)["last"]
        self._around, self._passed, self.stuck = False, True, False
        if last is not None:
            self._pass(last)

    def _sweep(self, run: Run, limit: int, *, look: bool = False) -> dict[str, Any]:
        """Run the statement on what comes next and return its counts and `last`; keep how many rows it found."""
        counts = run.row(self._query, **self._next(), limit=limit, cutoff=run.cutoff, look=look)
        self._found = counts.pop("found")
        return counts

    def _begin(self, run: Run) -> None:
        """Set out where the run before has ended."""
        if run.batch_rows is not None:
            self.sizer.begin_with(run.batch_rows)

    def _next(self) -> dict[str, object]:
        """Return the statement's parameters that say what comes next; the same ones until there was progress."""
        raise NotImplementedError

    def _pass(self, last: Any) -> None:
        """Go on behind the row that is next, whose place this is."""
        raise NotImplementedError

    def _advance(self, run: Run) -> Step:
        """Sweep what comes next and go on behind it."""
        raise NotImplementedError


class PageScan(_Scan):
    """Scan a table's heap, by the two statements of `app.sweeping.scan_sql`.

    Steps are direct as long as nobody holds a row for long and none fails; then some are gentle, by the rows' number. A
    row that is free is left to the next run when what else is to be written with it is held.

    A partitioned table is scanned as one: the same range of each of its partitions at a time. So a row that is stepped
    around there hides, until the next run, those that stand at the very same place of other partitions.
    """

    _ranges: PageRanges
    _partitioned = False

    def __init__(self, sql: PageSql, *, older_than: timedelta = timedelta(0)) -> None:
        super().__init__(sql.gentle, older_than=older_than)
        self.use(sql)
        #: How many of the next steps are gentle, and how many pages a direct one has covered.
        self._gentle_steps = 0
        self._span = 0
        #: Rows that were left to the next run and have yet to be counted.
        self._left = 0

    @property
    def resume_at(self) -> int:
        """The page that the next run goes on with."""
        return self._ranges.position if self._begun else 0

    def use(self, sql: PageSql) -> None:
        """Sweep by these statements from now on."""
        self.sql, self._query = sql, sql.gentle

    def recover(self, error: psycopg.Error) -> bool:
        """Leave out for a while the rows that others hold; else as any scan does."""
        if self._direct and isinstance(error, _ROW_IS_HELD):
            self._gentle_steps = GENTLE_STEPS
            return True
        if isinstance(error, HELD) and self.limit == 1:
            self._around = True
            self._left += 1
            return True
        return super().recover(error)

    def committed(self, seconds: float) -> None:
        """Adapt the size of the next step."""
        if self._direct and self._span:
            self.sizer.observe_span(seconds, self._span, self._found)
        else:
            self._gentle_steps = max(0, self._gentle_steps - 1)
            super().committed(seconds)

    @property
    def _direct(self) -> bool:
        """Whether the next step need not look at single rows; few enough of them do not fill a page."""
        return not (self._gentle_steps or self._fewer or self._partitioned or self.sizer.rows < FEWEST_ROWS)

    def _begin(self, run: Run) -> None:
        super()._begin(run)
        self._ranges = PageRanges(run.position, self._size(run))

    def _next(self) -> dict[str, object]:
        start, stop = self._ranges.next(self.sizer.pages)
        return {"start": start, "stop": stop}

    def _pass(self, last: Any) -> None:
        self._ranges.move_behind(last)

    def _advance(self, run: Run) -> Step:
        ranges = self._ranges
        counts = self._change_pages(run) if self._direct else self._change_rows(run)
        counts["skipped_locked"] += self._left
        self._left = 0
        if ranges.done:
            ranges.grow(self._size(run))
        return Step(counts, ranges.done, ranges.position)

    def _change_pages(self, run: Run) -> dict[str, int]:
        place, span = self._next(), self.sizer.span
        counts = run.row(self.sql.direct, **place, span=span, cutoff=run.cutoff)
        self._found, stop = counts.pop("found"), counts.pop("stop")
        counts = self._swept(run, counts, alone=False)
        self._ranges.move(stop or str(place["stop"]))
        self._span = span if stop else 0
        return counts

    def _change_rows(self, run: Run) -> dict[str, int]:
        ranges, limit = self._ranges, self.limit
        _, end = ranges.next(self.sizer.pages)
        counts = self._sweep(run, limit)
        last = counts.pop("last")
        if self._found < limit:
            ranges.move(end)
        elif not self._partitioned:
            ranges.move_behind(last)
        # Else what is left may be anywhere in the range, which is swept again: what was found is gone from it.
        return counts

    def _sweep(self, run: Run, limit: int, *, look: bool = False) -> dict[str, Any]:
        return self._swept(run, super()._sweep(run, limit, look=look), alone=limit == 1)

    def _swept(self, run: Run, counts: dict[str, Any], *, alone: bool) -> dict[str, Any]:
        """Return what a statement has counted. A sweeper's own work on what was changed goes here, a row if `alone`."""
        del run, alone
        return counts

    def _size(self, run: Run) -> int:
        row = run.row(_PAGES, table=run.table)
        self._partitioned = row["partitioned"]
        pages: int = row["pages"]
        return pages


# A position is a whole number; what is older than the epoch is not worth one.
_POSITION = """
SELECT CASE WHEN isfinite(key) THEN greatest(extract(epoch FROM key) * 1000000 + 1, 0)::bigint ELSE 0 END AS position
  FROM (SELECT %(key)s::timestamptz AS key) AS passed
"""


class KeysetScan(_Scan):
    """Scan an index that serves the sweep in full, until nothing is found.

    The statement also gets `%(after)s`, the value of the index to begin with, a time, and `%(skip)s`, how many rows to
    leave out there; `last` is the value to go on with: what was found before is dead in the index, and reading it again
    and again would take longer and longer.

    A run that has no more time once it has stepped around rows leaves its place to the next one, microseconds since the
    epoch, which goes on behind them and then from the start to there.
    """

    _after: object = "-infinity"
    _skip = 0
    #: Where this run began, as long as what is before that is left to do.
    _start: datetime | None = None
    #: Where the run ends, if that is not at its cutoff.
    _end: datetime | None = None
    _position = 0

    @property
    def resume_at(self) -> int:
        """Behind the last row that was stepped around."""
        return self._position

    def step(self, run: Run, *, over: bool) -> Step:
        """Sweep the next rows."""
        return super().step(self._until(run), over=over)

    def _until(self, run: Run) -> Run:
        """Return the run with the cutoff of what is left of it."""
        return replace(run, cutoff=self._end) if self._end else run

    def _begin(self, run: Run) -> None:
        super()._begin(run)
        if run.position:
            self._position = run.position
            self._after = self._start = moment(run.position)

    def _go_around(self, run: Run) -> None:
        super()._go_around(run)
        self._position = run.row(_POSITION, key=self._after)["position"]

    def _next(self) -> dict[str, object]:
        return {"after": self._after, "skip": self._skip}

    def _pass(self, last: Any) -> None:
        self._after, self._skip = last, (self._skip if last == self._after else 0) + 1

    def _advance(self, run: Run) -> Step:
        counts = self._sweep(run, self.limit)
        last = counts.pop("last")
        if last is not None and last != self._after:
            self._after, self._skip = last, 0
        elif not counts["changed"]:
            self._skip += self._found  # others hold them, at this very key
        done = self._found == 0
        if done and self._start:
            self._after, self._skip = "-infinity", 0
            self._start, self._end, done = None, self._start, False
        return Step(counts, done, self._position)


def _by_rows(error: psycopg.Error) -> bool:
    """Return whether fewer rows, or others, may fare better.

    Who has waited in vain and names no row, nor a trigger, in the error's context has waited for the whole table.
    """
    table_is_locked = isinstance(error, HELD) and error.diag.context is None
    return (error.sqlstate or "08")[:2] not in _NOT_BY_ROWS and not table_is_locked


def step_aside(run: Run, work: Callable[[], R], *, raises: tuple[type[psycopg.Error], ...] = SLOW) -> R | Failure:
    """Do work that may fail without harm to the rest of the step; return its failure when PostgreSQL refuses its rows.

    What it would refuse whatever the rows is raised, and what is among `raises`.
    """
    connection = run.cursor.connection
    try:
        with connection.transaction():
            return work()
    except psycopg.DatabaseError as error:
        if connection.closed or isinstance(error, raises) or not (isinstance(error, SLOW) or _by_rows(error)):
            raise
        return describe(error)


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
