"""What a transaction has to tell people of: the runs whose numbers come to their end in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.chaos.checks.transactions import Transaction


class Ending(NamedTuple):
    """A run that has changed something and whose end, as this transaction writes it, is to be told."""

    row: Mapping[str, Any]
    #: Whether its successor tells it.
    interrupted: bool


def endings(transaction: Transaction) -> list[Ending]:
    """Return the runs that come to their end in a transaction and have changed something.

    One that succeeds tells it with that, one that fails as it is closed, and one that was cut short is told by its
    successor as that closes it. What a clock ahead had run, and is forgotten, was told before.
    """
    found = []
    for change in transaction.of("sweep_run"):
        was, now = change.before.get("outcome"), change.after.get("outcome")
        if was in {None, "running"} and now in {"success", "failure", "interrupted"} and change.after["changed"]:
            found.append(Ending(change.after, now == "interrupted"))
    return found


def told(transaction: Transaction) -> list[Mapping[str, Any]]:
    """Return the events of sweeps that were done which this transaction writes."""
    return [event for event in events(transaction) if event["kind"] == "swept"]


def events(transaction: Transaction) -> list[Mapping[str, Any]]:
    """Return the events that it writes, but for digests: those have the tallies of events that were written before."""
    written = (change.after for change in transaction.of("notification_event") if change.op == "insert")
    return [event for event in written if not event["tallies"]]
