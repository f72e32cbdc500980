"""Adaptive batch size: how much the next transaction may do, by how long the last one took."""

from __future__ import annotations

#: Rows a transaction may change, and pages it may read: the first guess, which is safe everywhere, and the range
#: between "not only overhead" and "100 ms on a slow disk".
FIRST_ROWS, FEWEST_ROWS, MOST_ROWS = 500, 50, 5_000
FIRST_PAGES, FEWEST_PAGES, MOST_PAGES = 250, 25, 2_500
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

    def begin_with(self, rows: int) -> None:
        """Begin with fewer rows than usual, and allow for as few."""
        self.rows, self._fewest = min(rows, self.rows), min(rows, self._fewest)

    def shrink(self) -> None:
        """Make the next transaction much smaller, after one that was too slow to end."""
        self.begin_with(max(1, self.rows // 4))
        self.pages = max(1, self.pages // 4)

    def observe(self, seconds: float, found: int) -> None:
        """Move towards AIM by at most a factor of two up and four down; `found` rows were there to be changed."""
        factor = min(2.0, max(0.25, AIM / max(seconds, 1e-6)))
        full = found >= self.rows
        if full or (factor < 1 and found):
            self.rows = int(min(MOST_ROWS, max(self._fewest, self.rows * factor)))
        if not full:
            self.pages = int(min(MOST_PAGES, max(FEWEST_PAGES, self.pages * factor)))
