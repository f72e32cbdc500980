"""A scan of an index that serves a sweep in full, key by key, until nothing is found."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString

from app.sweeping.scans.scan import Scan
from app.sweeping.scans.sql import KeysetSql
from app.sweeping.schedule import moment
from app.sweeping.strategy import Run, Step

if TYPE_CHECKING:
    from psycopg import Cursor

# A position is a whole number; what is older than the epoch is not worth one.
_POSITION = """
SELECT CASE WHEN isfinite(key) THEN greatest(extract(epoch FROM key) * 1000000 + 1, 0)::bigint ELSE 0 END AS position
  FROM (SELECT %(key)s::timestamptz AS key) AS passed
"""

#: Steps in a row that may find nothing but rows of one key.
MOST_OF_ONE_KEY = 3

# The index is used whatever the statistics say: what it costs is bounded by what is due, and a plan that reads the
# table is not.
BY_THE_INDEX = """
SELECT set_config('enable_bitmapscan', 'off', true), set_config('enable_sort', 'off', true)
"""


class KeysetScan(Scan):
    """Scan an index in the order of its keys.

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
    #: How many steps in a row have found one key, and as many rows of it as they may change.
    _of_one_key = 0

    def __init__(self, sql: KeysetSql, older_than: timedelta = timedelta(0)) -> None:
        super().__init__(sql.gentle, older_than)
        self._listed: LiteralString | None = sql.listed

    @property
    def resume_at(self) -> int:
        """Behind the last row that was stepped around."""
        return self._position

    @property
    def crowded(self) -> bool:
        """Whether so many rows have one key that their pages would be the shorter way.

        What was changed of them is dead in the index, and passed again by each step.
        """
        return self._of_one_key >= MOST_OF_ONE_KEY

    def ask(self, run: Run) -> None:
        """Have the index used, and send a direct step's statement."""
        run.send(BY_THE_INDEX)
        super().ask(self._until(run))

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

    def _send(self, run: Run) -> Cursor[dict[str, Any]] | None:
        if self._listed is None or run.partitioned:
            return None  # the direct statement goes by places, of which each partition has its own
        return self._sent(run, self._listed, **self._next())

    def _advance(self, run: Run) -> Step:
        counts = self._find(run, self.limit) if self._asked is None else self._answer(run, self._asked)
        last = counts.pop("last")
        full = self._found >= self.limit and last == self._after
        self._of_one_key = self._of_one_key + 1 if full else 0
        if last is not None and last != self._after:
            self._after, self._skip = last, 0
        elif not counts["changed"]:
            self._skip += self._found  # others hold them, at this very key
        done = self._found == 0
        if done and self._start:
            self._after, self._skip = "-infinity", 0
            self._start, self._end, done = None, self._start, False
        return Step(counts, done, self._position)
