"""Tokens of one sweeper strictly grow, in the order in which its claims are committed.

A run's row bears the token that its own transaction has taken, and a slot is given back by the run whose token it was.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.checks.transactions import Transaction, transactions
from tests.chaos.history import Change, History


def tokens_grow(history: History) -> Iterator[str]:
    """Yield each claim whose token is not larger than that of the claim before it, and each that another one used."""
    newest: dict[str, int] = {}
    for change in history.changes:
        if change.relation != "sweep_state":
            continue
        name, token = change.after["name"], change.after["token"]
        if token == change.before.get("token", 0):
            continue  # a run's end, a failure counted, or a slot given back
        if token <= newest.get(name, 0):
            yield f"{name}: token {token} was given after {newest[name]}"
        newest[name] = token
    for transaction in transactions(history):
        yield from _claimed(transaction)
        yield from _given_back(transaction)


def _claimed(transaction: Transaction) -> Iterator[str]:
    given = {
        change.after["name"]: change.after["token"]
        for change in transaction.of("sweep_state")
        if change.after["token"] != change.before.get("token", 0)
    }
    for change in transaction.of("sweep_run"):
        row = change.after
        if change.op == "insert" and row["outcome"] == "running" and row["token"] != given.get(row["name"]):
            yield f"{row['name']}: run {row['id']} bears token {row['token']}, its claim took {given.get(row['name'])}"


def _given_back(transaction: Transaction) -> Iterator[str]:
    for change in transaction.of("sweep_state"):
        if not change.before or change.after["token"] != change.before["token"] or not _goes_back(change):
            continue
        name, token = change.after["name"], change.after["token"]
        closed = {run.after["token"] for run in transaction.of("sweep_run") if run.after.get("name") == name}
        if closed and token not in closed:
            old = ", ".join(map(str, sorted(closed)))
            yield f"{name}: the slot of token {token} was given back by a run with token {old}"


def _goes_back(change: Change) -> bool:
    return bool(change.after["last_slot"] != change.before["last_slot"])
