"""What was found beside the audit while the round was played, and after it: each is wrong by itself."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.history import History


def none_dies(history: History) -> Iterator[str]:
    """Yield each process that ended although nobody had killed it, whatever was done to what it depends on."""
    yield from history.deaths


def renewed_stay(history: History) -> Iterator[str]:
    """Yield each table of which rows were taken that had been renewed: a sweep judges a row again when it writes."""
    for relation, number in history.renewed_and_lost.items():
        if number:
            yield f"{number} rows of {relation} were renewed, and were taken all the same"


def nothing_remarked(history: History) -> Iterator[str]:
    """Yield what commands of an operator did that is not documented, and the like."""
    yield from history.remarks


def nothing_left(history: History) -> Iterator[str]:
    """Yield what is still there after the end."""
    for left in history.leftovers:
        yield f"{left.what}: {left.note}"
