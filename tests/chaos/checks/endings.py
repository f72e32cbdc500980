"""No process ends by itself, whatever is done to what it depends on."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.history import History


def none_dies(history: History) -> Iterator[str]:
    """Yield each process that ended although nobody had killed it."""
    yield from history.deaths
