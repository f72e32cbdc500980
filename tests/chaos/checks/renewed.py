"""A row that is renewed while a sweep is about to take it stays: the sweep judges it again when it writes."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.history import History


def renewed_stay(history: History) -> Iterator[str]:
    """Yield each table of which rows were taken that had been renewed before."""
    for relation, number in history.renewed_and_lost.items():
        if number:
            yield f"{number} rows of {relation} were renewed, and were taken all the same"
