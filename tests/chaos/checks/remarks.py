"""What faults have found out while they struck, and what a round has left behind: each is wrong by itself."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.history import History


def nothing_remarked(history: History) -> Iterator[str]:
    """Yield what commands of an operator did that is not documented, and the like."""
    yield from history.remarks


def nothing_left(history: History) -> Iterator[str]:
    """Yield what is still there after the end."""
    for left in history.leftovers:
        yield f"{left.what}: {left.note}"
