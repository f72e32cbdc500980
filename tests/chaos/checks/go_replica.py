"""A replica of the Go worker and ours never work at once on one sweeper: they take the same locks.

Go has no fence, so that this rests on the lock alone: it is not looked for where a fault may take a lock away from who
holds it (a lost Redis, a stopped process, a moved clock, a silent network). Of the rounds that is `operator`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise

from tests.chaos.checks.transactions import claims
from tests.chaos.history import History

#: Kinds of faults that leave locks with who holds them.
_KEEP = ("kill", "sink", "argocd", "go", "operator", "pause", "unlock", "mute", "rolling")


def go_excluded(history: History) -> Iterator[str]:
    """Yield each two works of one sweeper, one of them Go's, that overlap."""
    if not all(fault.kind.startswith(_KEEP) for fault in history.faults):
        return
    works: dict[str, list[tuple[datetime, datetime, str]]] = {}
    for held in history.go_held:
        works.setdefault(held.name, []).append((held.since, held.until, "Go"))
    known = claims(history)
    for change in history.changes:
        claim = known.get(change.after.get("id", 0)) if change.relation == "sweep_run" else None
        if claim and claim.name in works and change.after["outcome"] == "success" != change.before.get("outcome"):
            works[claim.name].append((claim.change.began, change.at, f"run {claim.run}"))
    for name, of_one in works.items():
        for before, after in pairwise(sorted(of_one)):
            if before[1] > after[0] and "Go" in {before[2], after[2]}:
                yield f"{name}: {before[2]} until {before[1]:%T.%f}, {after[2]} since {after[0]:%T.%f}"
