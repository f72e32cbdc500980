"""Nothing stands still for good: once the last fault is over, each sweeper succeeds once more.

A condition, not a length of time: a round waits for it, and for a minute at the longest.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.history import History


def all_go_on(history: History) -> Iterator[str]:
    """Yield each sweeper that has not succeeded since the last fault was over."""
    for name in history.cadences:
        moments = [success.at for success in history.successes if success.name == name]
        if history.calm is not None and not any(moment > history.calm for moment in moments):
            yield f"{name} stands still: it has not succeeded since the last fault was over"
