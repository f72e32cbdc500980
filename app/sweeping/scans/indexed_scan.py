"""A scan of a table that may have an index for it: by the index where there is one, else page by page."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from app.sweeping.scans.keyset_scan import KeysetScan
from app.sweeping.scans.tables import INDEXED, LARGE, Index
from app.sweeping.strategy import Passing, Run, Step

if TYPE_CHECKING:
    from app.sweeping.scans.page_scan import PageScan

#: The first part is an addition: steps, and rows that fail, after which the pages have their turn.
FIRST_STEPS, FIRST_FAILED = 20, 10


class IndexedScan(Passing):
    """Scan by the index of a table that is large, where it has that; else by its pages.

    A table that is too large for one run's share of pages, and has no such index, is gone through in the course of many
    runs. What an index of the api's own finds (`first`) is swept in each of them.
    """

    def __init__(
        self, index: Index, keys: KeysetScan, pages: PageScan, first: tuple[Index, KeysetScan] | None = None
    ) -> None:
        super().__init__(pages)
        self._index, self._keys, self._pages = index, keys, pages
        self._first = first
        self._scans = (keys, pages, *(first[1:] if first else ()))
        self._chosen = False
        #: Whether what is passed to is only the first part, and the pages come next, from this place.
        self._part = False
        self._position = 0
        self._steps = 0

    @property
    def resume_at(self) -> int:
        """Where the next run goes on: the first part has no place of its own."""
        return self._position if self._part else super().resume_at

    @property
    def rows_failed(self) -> int:  # type: ignore[override]
        """Those of all its ways."""
        return sum(scan.rows_failed for scan in self._scans)

    def ask(self, run: Run) -> None:
        """Choose the way once, and pass it on."""
        if not self._chosen:
            self._chosen = True
            self._position = run.position
            self._choose(run)
        super().ask(self._of_part(run))

    def step(self, run: Run, *, over: bool) -> Step:
        """Pass it on; after the first part come the pages, and after keys that too many rows share."""
        step = super().step(self._of_part(run), over=over)
        self._steps += 1
        scan = self.strategy
        if not isinstance(scan, KeysetScan) or not (self._part or scan.crowded):
            return step
        bounded = self._steps >= FIRST_STEPS or scan.rows_failed >= FIRST_FAILED or scan.crowded
        if step.last or bounded:
            self._part = False
            self.strategy = self._pages
        return step._replace(last=False, resume_at=run.position)

    def _choose(self, run: Run) -> None:
        if run.pages < LARGE:
            return
        if _there(run, self._index):
            self.strategy = self._keys
        elif self._first and run.most_pages is not None and run.pages > run.most_pages:
            index, keys = self._first
            if _there(run, index):
                self.strategy, self._part = keys, True

    def _of_part(self, run: Run) -> Run:
        return replace(run, position=0) if self._part else run


def _there(run: Run, index: Index) -> bool:
    return bool(run.row(INDEXED, **index._asdict())["indexed"])
