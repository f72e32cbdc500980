"""A row of the ledger, as all who look back at it read it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, LiteralString, NamedTuple

from app.core.jsonb import whole_numbers

#: What is read of a row, in the order of an Entry.
COLUMNS: LiteralString = """
id, name, slot, covered, token, worker, started_at, finished_at, outcome, changed, batches, counts, handed_over,
error_class, sqlstate, requested_by"""


class Entry(NamedTuple):
    """One row of `sweep_run`; times aware."""

    id: int
    name: str
    slot: datetime
    #: How many slots before its own it stands for, by its own account.
    covered: int
    #: None for an attempt that failed before it had claimed its slot.
    token: int | None
    worker: str
    started_at: datetime
    finished_at: datetime | None
    #: running, success, failure or interrupted.
    outcome: str
    changed: int
    batches: int
    counts: Any
    handed_over: bool
    error_class: str | None
    sqlstate: str | None
    #: Who asked for it, if it was no tick.
    requested_by: str | None

    @property
    def numbers(self) -> dict[str, int]:
        """What of its counts are names and whole numbers: only these are shown."""
        return whole_numbers(self.counts)

    @property
    def late(self) -> timedelta:
        """From its slot to its start."""
        return self.started_at - self.slot

    @property
    def took(self) -> timedelta | None:
        """From its start to its end; None while it runs."""
        return None if self.finished_at is None else self.finished_at - self.started_at

    @property
    def error(self) -> str:
        """Class name and SQLSTATE."""
        return " ".join(filter(None, (self.error_class, self.sqlstate)))
