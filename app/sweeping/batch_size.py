"""Adaptive batch size: how much the next transaction may do, by how long the last one took."""

from __future__ import annotations

#: Rows a transaction may change, and pages it may read: the first guess, which is safe everywhere, and the range
#: between "not only overhead" and "100 ms on a slow disk".
FIRST_ROWS, FEWEST_ROWS, MOST_ROWS = 500, 50, 20_000
FIRST_PAGES, FEWEST_PAGES, MOST_PAGES = 250, 25, 2_500
#: How many of them lie on a page: before any was seen, more than most tables have; and fewer than that are never
#: expected, or a transaction would cover so many pages that it is far too long where they are full.
FIRST_ROWS_PER_PAGE, FEWEST_ROWS_PER_PAGE = 50.0, 10.0
#: What a transaction is meant to take, seconds, commit included.
AIM = 0.020


class BatchSizer:
    """Chooses the size of the next transaction, in both directions.

    Rows and pages are sized apart: what was observed while reading pages without anything to do says nothing of how
    long it takes to change rows, and the first full page after many empty ones must not meet a huge allowance.
    """

    def __init__(self) -> None:
        self.rows = FIRST_ROWS
        self.pages = FIRST_PAGES
        self._fewest = FEWEST_ROWS
        self._rows_per_page = FIRST_ROWS_PER_PAGE

    @property
    def span(self) -> int:
        """How many pages are expected to hold that many rows."""
        return max(1, int(self.rows / self._rows_per_page))

    def begin_with(self, rows: int) -> None:
        """Begin with fewer rows than usual, and allow for as few."""
        self.rows, self._fewest = min(rows, self.rows), min(rows, self._fewest)

    def shrink(self) -> None:
        """Make the next transaction much smaller, after one that was too slow to end."""
        self.begin_with(max(1, self.rows // 4))
        self.pages = max(1, self.pages // 4)

    def observe_span(self, seconds: float, span: int, found: int) -> None:
        """Move towards AIM after a transaction that has changed whatever was due on so many pages, `found` rows.

        How densely the rows lie is expected to stay as it was, and never to fall by more than half at once: behind a
        sparse part of a table may come a dense one.
        """
        factor = _factor(seconds)
        few = found < self.rows / 4  # then it is the pages on the way to them that took the time, or the rows
        if few:
            self._resize_pages(factor)
        if factor < 1 or not few:
            self._resize_rows(factor)
        self._rows_per_page = max(FEWEST_ROWS_PER_PAGE, found / span, self.rows / (2 * span))

    def observe(self, seconds: float, found: int) -> None:
        """Move towards AIM by at most a factor of two up and four down; `found` rows were there to be changed."""
        factor = _factor(seconds)
        full = found >= self.rows
        if full or (factor < 1 and found):
            self._resize_rows(factor)
        if not full:
            self._resize_pages(factor)

    def _resize_rows(self, factor: float) -> None:
        self.rows = int(min(MOST_ROWS, max(self._fewest, self.rows * factor)))

    def _resize_pages(self, factor: float) -> None:
        self.pages = int(min(MOST_PAGES, max(FEWEST_PAGES, self.pages * factor)))


def _factor(seconds: float) -> float:
    return min(2.0, max(0.25, AIM / max(seconds, 1e-6)))
