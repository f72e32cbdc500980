"""What a row of the ledger says by itself: its numbers and times must fit the way that it ended."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from app.overview.history.entry import Entry

#: A tick may be this much of its interval ahead, and a scheduler's clock with it.
_LONGEST_AHEAD = 0.5


def wrong_with(row: Entry, interval: timedelta | None) -> Iterator[str]:
    """Yield what is wrong with a row; without its interval nothing is said of how early it began."""
    yield from _wrong_numbers(row)
    yield from _wrong_end(row)
    if interval is not None and row.requested_by is None and row.late < -interval * _LONGEST_AHEAD:
        yield "began more than half an interval before its slot"


def _wrong_numbers(row: Entry) -> Iterator[str]:
    if min(row.covered, row.changed, row.batches) < 0:
        yield "has a number below zero"
    if not isinstance(row.counts, dict) or not all(type(count) is int and count >= 0 for count in row.counts.values()):
        yield "has counts that are no whole numbers"
    if row.changed and not row.batches:
        yield "changed rows in no transaction"
    if row.outcome != "failure" and row.token is None:
        yield "has no fencing token"


def _wrong_end(row: Entry) -> Iterator[str]:
    if (row.outcome == "running") != (row.finished_at is None):
        yield "runs and has ended" if row.outcome == "running" else "is over and has no end"
    elif row.finished_at and row.finished_at < row.started_at and row.outcome != "interrupted":
        yield "ended before it began"  # whoever closes an interrupted one has perhaps waited for that
    if row.outcome == "success" and (row.error_class is not None or row.batches < 1):
        yield "succeeded with an error" if row.error_class else "succeeded without a transaction"
    if row.outcome == "failure" and row.error_class is None:
        yield "failed without an error"
