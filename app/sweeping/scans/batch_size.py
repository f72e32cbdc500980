"""Adaptive batch size: how much the next transaction may do, by what the last one's rows and pages took.

What counts is the work of a step, not the round trips around it: over a network those alone may take longer than a step
should, and no smaller batch would make them shorter.
"""

from __future__ import annotations

import math

#: Rows a transaction may change: the first guess, which is safe everywhere, and the range between "not only overhead"
#: and "100 ms on a slow disk".
FIRST_ROWS, FEWEST_ROWS, MOST_ROWS = 500, 50, 50_000
#: Pages it may read on the way to them.
FIRST_PAGES, FEWEST_PAGES, MOST_PAGES = 2_500, 25, 10_000
#: Where fewer rows than that lie on a page they are not changed by ranges of pages: a dense part may come next, and the
#: transaction would be far too long.
FEWEST_ROWS_PER_PAGE = 10.0
#: What the work of a transaction is meant to take, seconds, since who wants one of its rows waits for so long; and as
#: many times its round trips, up to the most.
AIM, TIMES, MOST_AIM = 0.020, 4, 0.030
#: A transaction takes two round trips.
ROUND_TRIPS = 2
#: How much faster or slower than aimed at counts at once: one that was fast may have been lucky.
FASTEST, SLOWEST = 8.0, 0.25


class BatchSizer:
    """Chooses the size of the next transaction, in both directions.

    Rows and pages are sized apart: what was observed while reading pages without anything to do says nothing of how
    long it takes to change rows, and the first full page after many empty ones must not meet a huge allowance.
    """

    def __init__(self) -> None:
        self.rows = FIRST_ROWS
        self.pages = FIRST_PAGES
        self._fewest = FEWEST_ROWS
        self._rows_per_page = 0.0
        #: How many rows lie on a page, due or not, as far as that is known; 0 if not.
        self.rows_per_page = 0.0

    @property
    def dense(self) -> bool:
        """Whether the last rows lay so close that the next ones may be changed by a range of pages."""
        return self._rows_per_page >= FEWEST_ROWS_PER_PAGE

    @property
    def span(self) -> int:
        """How many pages are expected to hold that many rows, and hold no more than twice as many."""
        return max(1, int(self.rows / max(self._rows_per_page, self.rows_per_page / 2, FEWEST_ROWS_PER_PAGE)))

    def begin_with(self, rows: int) -> None:
        """Begin with fewer rows than usual, at least 1, and allow for as few."""
        rows = max(1, rows)
        self.rows, self._fewest = min(rows, self.rows), min(rows, self._fewest)

    def shrink(self) -> None:
        """Make the next transaction much smaller, after one that was too slow to end."""
        self.begin_with(self.rows // 4)
        self.pages = max(1, self.pages // 4)

    def observe_span(self, work: float, round_trip: float, span: int, found: int) -> None:
        """Learn from a step that has changed whatever was due on so many pages, `found` rows; times in seconds.

        How densely the rows lie is expected never to fall by more than half at once: behind a sparse part of a table
        may come a dense one.
        """
        self._resize_rows(_factor(work, round_trip) * max(found, self.rows / 2) / self.rows)
        self._rows_per_page = max(found / span, self._rows_per_page / 2)

    def observe(self, work: float, round_trip: float, found: int, pages: float = math.inf) -> None:
        """Learn from a step for which `found` rows were there to be changed, on so many pages; times in seconds."""
        factor = _factor(work, round_trip)
        full = found >= self.rows
        if full or (factor < 1 and found):
            self._resize_rows(factor)
        if not full:
            self._resize_pages(factor)
        self._rows_per_page = found / max(1.0, pages)

    def _resize_rows(self, factor: float) -> None:
        self.rows = int(min(MOST_ROWS, max(self._fewest, self.rows * factor)))

    def _resize_pages(self, factor: float) -> None:
        self.pages = int(min(MOST_PAGES, max(FEWEST_PAGES, self.pages * factor)))


def _factor(work: float, round_trip: float) -> float:
    aim = min(MOST_AIM, max(AIM, TIMES * ROUND_TRIPS * round_trip))
    return min(FASTEST, max(SLOWEST, aim / max(work, 1e-6)))
