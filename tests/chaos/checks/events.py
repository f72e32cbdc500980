"""Whatever was done is told once: in the transaction that ends the run, or in that of the successor that closes it.

A streak of failures is told with its first one, which the fence's row counts, and its end is told if it was. An event
that no run, failure or receiver has caused in its own transaction is one too many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tests.chaos.checks.told import endings, events, told
from tests.chaos.checks.transactions import Transaction, transactions
from tests.chaos.history import Change, History


def each_is_told_once(history: History) -> Iterator[str]:
    """Yield each run that was not told, or twice, and each event without a cause."""
    reported: set[str] = set()
    for transaction in transactions(history):
        yield from _swept(transaction)
    for transaction in sorted(transactions(history), key=_fenced):
        yield from _streaks(transaction, reported)


def _fenced(transaction: Transaction) -> int:
    """Return its place among those that have changed a fence's row: one may have begun first, and waited for that."""
    return min(change.n for change in transaction.of("sweep_state") or transaction.changes)


def _swept(transaction: Transaction) -> Iterator[str]:
    due = Counter((ending.row["name"], ending.interrupted) for ending in endings(transaction))
    sent = Counter((event["component"], "interrupted" in event["metadata"]) for event in told(transaction))
    for (name, interrupted), number in (due - sent).items():
        what = "was interrupted" if interrupted else "ended"
        yield f"{name}: {number} runs that changed something and {what} were not told, in {transaction.xid}"
    for (name, _), number in (sent - due).items():
        yield f"{name}: {number} events of no run that ended, in transaction {transaction.xid}"


def _streaks(transaction: Transaction, reported: set[str]) -> Iterator[str]:
    """Follow streaks, in the order in which the fences' rows were committed."""
    due: Counter[tuple[str, str]] = Counter()
    for change in transaction.of("sweep_state"):
        name, before, after = change.after["name"], _failures(change.before), _failures(change.after)
        if after > before and name not in reported:
            reported.add(name)
            due[name, "failed"] += 1
        elif before and not after and name in reported:
            reported.remove(name)
            due[name, "recovered"] += 1
    sent = Counter(
        (event["component"], event["kind"]) for event in events(transaction) if event["kind"] in {"failed", "recovered"}
    )
    for (name, kind), number in (due - sent).items():
        yield f"{name}: {number} that should be told as {kind} is not, in transaction {transaction.xid}"
    for (name, kind), number in (sent - due).items():
        yield f"{name}: {number} told as {kind} without a cause, in transaction {transaction.xid}"


def _failures(row: Change | object) -> int:
    return int(row.get("failures") or 0) if isinstance(row, dict) else 0
