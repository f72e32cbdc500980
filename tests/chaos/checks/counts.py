"""Numbers are true: what a run says that it has changed is what the audit has seen change, in each of its transactions.

The same number stands in the ledger at the end, and in the event that people get: also for a run that was cut short,
whose successor tells what it had committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tests.chaos.checks.told import endings, told
from tests.chaos.checks.transactions import Transaction, transactions
from tests.chaos.history import Change, History


def _whatever(_change: Change) -> bool:
    return True


def _became(column: str, value: str) -> Callable[[Change], bool]:
    return lambda change: bool(change.after.get(column) == value != change.before.get(column))


#: How many rows of a table a sweeper's `changed` is to have counted.
ROWS: Mapping[str, tuple[str, Callable[[Change], bool]]] = {
    "wraps-expired": ("secret_wraps", _whatever),
    "sessions-expired": ("sessions", _whatever),
    "secrets-stale": ("secrets", _whatever),
    "agents-stale": ("agents", _whatever),
    "jobs-recovery": ("sync_jobs", _whatever),
    "discover-scheduler": ("sync_jobs", lambda change: change.op == "insert"),
    "discover-stuck": ("provider_connections", _whatever),
    "gitops-timeout": ("gitops_observations", _became("polling_state", "applied_unverified")),
    "cross-team-fill-window-expired": ("access_requests", _whatever),
}
#: And how many its further counts are to have.
MORE: Mapping[str, Mapping[str, tuple[str, Callable[[Change], bool]]]] = {
    "jobs-recovery": {"connections_failed": ("provider_connections", _whatever)},
    "reveal-sessions-expired": {"sessions_swept": ("reveal_sessions", _whatever)},
    "gitops-poller": {
        "applied": ("gitops_observations", _became("polling_state", "applied")),
        "observations_failed": ("gitops_observations", _became("polling_state", "failed")),
    },
}
#: Of which counts `changed` is the sum, where no audited table has it.
SUMS: Mapping[str, tuple[str, ...]] = {
    "reveal-sessions-expired": ("sessions_swept", "wraps_expired"),
    "gitops-poller": ("applied", "observations_failed", "endpoints_unhealthy", "endpoints_recovered"),
}
#: The name of the number in an event, where it is that of all rows.
TOLD: Mapping[str, str] = {
    "wraps-expired": "deleted",
    "sessions-expired": "deleted",
    "secrets-stale": "flipped",
    "agents-stale": "flipped",
    "jobs-recovery": "flipped",
    "gitops-timeout": "flipped",
    "discover-stuck": "flipped",
    "discover-scheduler": "enqueued",
    "cross-team-fill-window-expired": "requests_swept",
}


def numbers_are_true(history: History) -> Iterator[str]:
    """Yield each number that is not what was changed."""
    newest: dict[int, Mapping[str, Any]] = {}
    for transaction in transactions(history):
        yield from _step(transaction)
        yield from _told(transaction)
        newest.update((change.after["id"], change.after) for change in transaction.of("sweep_run") if change.after)
    for row in history.runs:
        seen = newest.get(row["id"])
        if seen and any(seen[column] != row[column] for column in ("changed", "batches", "covered")):
            yield f"run {row['id']} of {row['name']}: the ledger says something else than was committed last"


def _step(transaction: Transaction) -> Iterator[str]:
    steps = transaction.steps
    if len(transaction.runs) != 1:
        return
    before, after = steps[0].before, steps[-1].after
    name, what = after["name"], f"run {after['id']} of {after['name']}, transaction {transaction.xid}"
    said = after["changed"] - before.get("changed", 0)
    if name in ROWS:
        table, is_one = ROWS[name]
        changed = sum(is_one(change) for change in transaction.of(table))
        if said != changed:
            yield f"{what}: counted {said}, and changed {changed} rows"
    for count, (table, is_one) in MORE.get(name, {}).items():
        grew = _count(after, count) - _count(before, count)
        changed = sum(is_one(change) for change in transaction.of(table))
        if grew != changed:
            yield f"{what}: counted {grew} as {count}, and changed {changed} rows"
    if name in SUMS and after["changed"] != sum(_count(after, count) for count in SUMS[name]):
        yield f"{what}: changed {after['changed']} is not the sum of its counts"


def _count(row: Mapping[str, Any], name: str) -> int:
    return int(row.get("counts", {}).get(name, 0))


def _told(transaction: Transaction) -> Iterator[str]:
    """Compare the numbers of events with those of their runs; that each has its event is another check's matter."""
    runs = sorted(_numbers(ending.row["name"], ending.row) for ending in endings(transaction))
    events = sorted(_said(event) for event in told(transaction))
    if len(runs) == len(events) and runs != events:
        yield f"transaction {transaction.xid}: told {events}, and ended runs with {runs}"


def _numbers(name: str, row: Mapping[str, Any]) -> tuple[str, int]:
    return name, row["changed"]


def _said(event: Mapping[str, Any]) -> tuple[str, int]:
    name, numbers = event["component"], event["metadata"]
    counts = (TOLD[name],) if name in TOLD else SUMS.get(name, ())
    return name, sum(numbers.get(count, 0) for count in counts)
