"""Nobody writes under an old token: what a run does is committed before the next claim of its sweeper, or not at all.

Two orders say so, and neither is the worker's: that of the audit, whose numbers are drawn while the row is locked, and
that of PostgreSQL's commits, as far as its clock was left alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.checks.transactions import Claim, Transaction, claims, moves, transactions
from tests.chaos.history import Change, History


def fence_holds(history: History) -> Iterator[str]:
    """Yield each transaction that wrote after the next claim, and each that changed rows without being a run's."""
    known, moved = claims(history), moves(history)
    for transaction in transactions(history):
        runs = transaction.runs
        if len(runs) > 1:
            yield f"transaction {transaction.xid} of {transaction.session} is of {len(runs)} runs"
        if transaction.swept and not runs:
            tables = ", ".join(sorted({change.relation for change in transaction.swept}))
            yield f"transaction {transaction.xid} of {transaction.session} changed {tables} and is of no run"
        for run in runs:
            claim = known.get(run)
            if claim is None:
                yield f"transaction {transaction.xid} is of run {run}, which was never claimed"
            else:
                yield from _late(history, transaction, claim, moved[claim.name])


def _late(history: History, transaction: Transaction, claim: Claim, moved: list[Change]) -> Iterator[str]:
    following = next((move for move in moved if move.n > claim.change.n), None)
    if following is None:
        return
    what = f"run {claim.run} of {claim.name}, token {claim.token}"
    written = [*transaction.swept, *transaction.steps]
    if late := [change for change in written if change.n > following.n]:
        rows = sum(change in transaction.swept for change in late)
        yield f"{what} wrote {rows} rows after token {following.after['token']} was given, in {transaction.xid}"
        return
    ours, theirs = history.commits.get(transaction.xid), history.commits.get(following.xid)
    if ours and theirs and transaction.xid != following.xid and ours > theirs:
        late_by = (ours - theirs).total_seconds()
        yield f"{what} was committed {late_by:.3f} s after token {following.after['token']}, in {transaction.xid}"
