"""Observations: polls are counted up, one at a time, and what has come to its end is not written any more."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.history import History

_OPEN = frozenset({"queued", "active"})


def polls_go_forward(history: History) -> Iterator[str]:
    """Yield each observation whose number of polls went back or jumped, and each that was written after its end."""
    for change in history.changes:
        if change.relation != "gitops_observations" or change.op != "update" or not change.ours:
            continue
        before, after = change.before, change.after
        what = f"observation {after['id']}, in transaction {change.xid}"
        if after["polls_count"] - before["polls_count"] not in {0, 1}:
            yield f"{what}: polls_count went from {before['polls_count']} to {after['polls_count']}"
        if before["polling_state"] not in _OPEN:
            yield f"{what}: was {before['polling_state']}, and was written all the same"
