"""What scans of a table have in common: how they are sized, and how they get around what cannot be changed now.

None of the api's indexes serves most sweeps in full: most expired wraps are consumed and out of the partial index,
claimed jobs have none, old secrets are found among the missing ones. So such a sweep reads its whole table, page by
page (`app.sweeping.scans.page_scan`); one that an index serves goes by that (`app.sweeping.scans.keyset_scan`).
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import structlog

from app.core.errors import describe
from app.storage.postgres import only_row
from app.sweeping.scans.batch_size import FEWEST_ROWS, BatchSizer
from app.sweeping.scans.refusals import HELD, SLOW, by_rows
from app.sweeping.scans.sql import LOCK_WAIT
from app.sweeping.strategy import Run, Step, Strategy, Took

if TYPE_CHECKING:
    from psycopg import Cursor

log = structlog.get_logger("sweep")

#: After a row was found held by another session, so many steps leave such rows out in place of waiting for them.
GENTLE_STEPS = 16
_ROW_IS_HELD = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)

WAIT = "SELECT set_config('lock_timeout', %(wait)s, true)"


class Scan(Strategy):
    """Changes rows again and again, a number of them that adapts to how long it takes.

    A step is direct as long as nobody holds a row for long and none fails: one statement that changes what it finds,
    and waits for a held row no longer than LOCK_WAIT. When that is not enough, some steps are gentle: they lock what is
    free, and leave out and count what is not. A step that took too long is made much smaller, one that a row made fail
    (by data, constraint or trigger) is halved, down to one row. If that one fails, it is stepped around and counted.
    """

    def __init__(self, gentle: LiteralString, older_than: timedelta = timedelta(0)) -> None:
        self.older_than = older_than
        self.sizer = BatchSizer()
        self._gentle: LiteralString = gentle
        self._found = 0
        #: The statement of a direct step, which was sent with what began the transaction.
        self._asked: Cursor[dict[str, Any]] | None = None
        #: Whether the step is direct, also where its statement has failed as it was sent.
        self._directly = False
        #: How many of the next steps are gentle.
        self._gentle_steps = 0
        #: How many rows a step takes after one that failed; None while all is well.
        self._fewer: int | None = None
        #: How many rows the next step may change, whatever would be best; None for no such bound.
        self._most: int | None = None
        #: Whether the next step is to begin behind the first row that it finds, and whether one has.
        self._around = False
        self._passed = False
        self._begun = False
        #: Rows that were left to the next run and have yet to be counted.
        self._left = 0
        #: Further parameters of the statements.
        self.words: dict[str, object] = {}

    @property
    def limit(self) -> int:
        """How many rows the next step takes at most."""
        rows = self._fewer or self.sizer.rows
        return rows if self._most is None else min(rows, self._most)

    @property
    def batch_rows(self) -> int | None:
        """How many rows the next run is to begin with: fewer than usual if that was too many."""
        return self.limit if self._fewer is not None or self.limit < FEWEST_ROWS else None

    def recover(self, error: psycopg.Error) -> bool:
        """Leave rows that others hold out for a while; else make the next step smaller, or step around the row."""
        if self._directly and isinstance(error, _ROW_IS_HELD):
            self._gentle_steps = GENTLE_STEPS
            return True
        if not self._directly and isinstance(error, HELD) and self.limit == 1 and by_rows(error):
            self._around = True  # what else is to be written with the row is held
            self._left += 1
            return True
        slow = isinstance(error, SLOW)
        if not slow and not by_rows(error):
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

    def committed(self, took: Took) -> None:
        """Adapt the size of the next step."""
        if self._asked is None:
            self._gentle_steps = max(0, self._gentle_steps - 1)
        if self._fewer is None:
            self._observe(took)
        else:
            self._fewer = self._fewer * 2 if self._fewer * 2 < self.sizer.rows else None

    def ask(self, run: Run) -> None:
        """Send a direct step's statement."""
        self._most = run.most_rows
        if not self._begun:
            self._begin(run)
            self._begun = True
        self._asked, self._directly = None, self._direct()
        if self._directly:
            self._asked = self._send(run)
            self._directly = self._asked is not None

    def step(self, run: Run, *, over: bool) -> Step:
        """Sweep the next rows."""
        del over
        if self._around:
            self._go_around(run)
        step = self._advance(run)
        left, self._left = self._left, 0
        if not left:
            return step
        return step._replace(counts={**step.counts, "skipped_locked": step.counts.get("skipped_locked", 0) + left})

    def _direct(self) -> bool:
        """Whether the next step need not look at single rows; few enough of them do not fill a page."""
        few = self._fewer or self._around or self.sizer.rows < FEWEST_ROWS
        return not (self._gentle_steps or few)

    def _go_around(self, run: Run) -> None:
        """Go on behind the row that cannot be swept."""
        last = self._find(run, 1, passing=True)["last"]
        self._around, self._passed, self.stuck = False, True, False
        if last is not None:
            self._pass(last)

    def _find(self, run: Run, limit: int, *, passing: bool = False) -> dict[str, Any]:
        """Run the gentle statement on what comes next, and return its counts and `last`; keep how many it found."""
        words = {**self.words, **self._next(), "limit": limit, "cutoff": run.cutoff, "passing": passing}
        counts = run.row(self._gentle, **words)
        return self._swept(run, self._found_of(counts), alone=limit == 1)

    def _sent(self, run: Run, query: LiteralString, **parameters: object) -> Cursor[dict[str, Any]]:
        """Send a direct statement, which waits for held rows no longer than LOCK_WAIT."""
        run.send(WAIT, wait=LOCK_WAIT)
        answer = run.send(query, **self.words, **parameters, limit=self.limit, cutoff=run.cutoff)
        run.send(WAIT, wait=run.lock_timeout)
        return answer

    def _answer(self, run: Run, asked: Cursor[dict[str, Any]]) -> dict[str, Any]:
        """Return the counts of a direct statement."""
        if asked.description is None:
            counts: dict[str, Any] = {"changed": asked.rowcount}
        else:
            counts = only_row(asked)
        return self._swept(run, self._found_of(counts), alone=False)

    def _found_of(self, counts: dict[str, Any]) -> dict[str, Any]:
        self._found = counts.pop("found", counts["changed"])
        return counts

    def _swept(self, run: Run, counts: dict[str, Any], *, alone: bool) -> dict[str, Any]:
        """Return what a statement has counted. A sweeper's own work on what was changed goes here, a row if `alone`."""
        del run, alone
        return counts

    def _begin(self, run: Run) -> None:
        """Set out where the run before has ended."""
        if run.batch_rows is not None:
            self.sizer.begin_with(run.batch_rows)

    def _observe(self, took: Took) -> None:
        """Learn from a step that went well."""
        self.sizer.observe(took.work, took.round_trip, self._found)

    def _next(self) -> dict[str, object]:
        """Return the statement's parameters that say what comes next; the same ones until there was progress."""
        raise NotImplementedError

    def _send(self, run: Run) -> Cursor[dict[str, Any]] | None:
        """Send the direct statement for what comes next."""
        raise NotImplementedError

    def _pass(self, last: Any) -> None:
        """Go on behind the row that is next, whose place this is."""
        raise NotImplementedError

    def _advance(self, run: Run) -> Step:
        """Sweep what comes next, or read the answer of what was sent, and go on behind it."""
        raise NotImplementedError
