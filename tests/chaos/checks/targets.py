"""A target is discovered by one job at a time: none is enqueued while another one of the same target is open."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.history import Change, History

_OPEN = frozenset({"queued", "claimed"})


def one_open_job(history: History) -> Iterator[str]:
    """Yield each job that was enqueued beside another one, in the order of the changes."""
    open_jobs: dict[str, set[str]] = {}
    for change in history.changes:
        if change.relation == "sync_jobs" and change.after.get("job_type") == "discover":
            yield from _follow(change, open_jobs.setdefault(_target(change), set()))


def _follow(change: Change, of_target: set[str]) -> Iterator[str]:
    job = change.after["id"]
    if change.after["status"] not in _OPEN:
        of_target.discard(job)
        return
    if change.op == "insert" and of_target:
        yield f"a second job of {_target(change)} was enqueued by {change.session}"
    of_target.add(job)


def _target(change: Change) -> str:
    return str(change.after["payload"].get("connection_id"))
