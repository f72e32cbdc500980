"""How the history of a small round is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.chaos.history import Change, History
from tests.chaos.small.book import WRAPS, Book

Mutation = Callable[[Book], History]


def edited(book: Book, wanted: Callable[[Change], bool], which: int = 0, **columns: Any) -> History:
    """Return the round with other columns in one of the changes that are wanted."""
    place = [place for place, change in enumerate(book.changes) if wanted(change)][which]
    book.changes[place] = book.changes[place]._replace(**columns)
    return book.history()


def row_of(change: Change, **columns: Any) -> dict[str, Any]:
    """Return the row as it is after the change, with other columns."""
    return {**change.after, **columns}


def of(relation: str, op: str, **columns: Any) -> Callable[[Change], bool]:
    """Return what finds the changes of a relation after which a row has these columns."""

    def wanted(change: Change) -> bool:
        found = change.relation == relation and change.op == op
        return found and all(change.after.get(column) == value for column, value in columns.items())

    return wanted


def rerun(book: Book, slot: int, covered: int = 0) -> History:
    """Have one more run at the end."""
    book.transaction(6.1)
    book.claim(6, WRAPS, slot, covered)
    book.step(6, 0, "success")
    return book.history()
