"""What holds of what is stored, whatever the steps were: the promises, by the ledger and by the rows themselves."""

from __future__ import annotations

from collections import Counter

from tests.model.abstract.world import Outcome, index
from tests.model.stepped.bench import Stored

#: Errors that a step may end with: those that were ordered, and a connection that was cut.
EXPECTED = {"Broken", "Answers", "AdminShutdown", "OperationalError", "IdleInTransactionSessionTimeout"}


class Broke(AssertionError):
    """A promise is broken."""


def check(stored: Stored, *, jumped: bool, newest: int) -> None:
    """Raise Broke unless all promises hold. `newest` is the newest token that was seen before."""
    rows, errors = stored.rows, set(stored.errors) - EXPECTED
    if errors:
        raise Broke(f"a run failed by {', '.join(sorted(errors))}")
    standing = Counter(row.slot for row in rows if row.outcome is not Outcome.INTERRUPTED)
    if any(number > 1 for number in standing.values()):
        raise Broke("a slot has two runs that stand")
    if sum(row.outcome is Outcome.RUNNING for row in rows) > 1:
        raise Broke("two runs are open")
    if [row.token for row in rows] != sorted({row.token for row in rows}):
        raise Broke("tokens do not grow in the order of claims")
    if stored.token < max([newest, *(row.token for row in rows)]):
        raise Broke("the fence's token is older than one that was given")
    # What was changed by runs that failed is reported with their failure.
    untold = sum(row.changed for row in rows if row.outcome is Outcome.RUNNING)
    if stored.changed - stored.told != untold:
        raise Broke(f"{stored.changed} rows were changed and {stored.told} reported, {untold} are still to be")
    if rows:
        _slots(stored, jumped=jumped)


def _slots(stored: Stored, *, jumped: bool) -> None:
    rows = stored.rows
    run = {index(row.slot) for row in rows}
    last_of_slot = {row.slot: row.covered for row in rows}
    covered = [index(slot) - number for slot, most in last_of_slot.items() for number in range(1, most + 1)]
    span = set(range(index(rows[0].slot), index(rows[-1].slot) + 1))
    if not span <= run | set(covered):
        raise Broke("a slot is neither run nor covered")
    if jumped:
        return
    if len(span) != len(run) + len(covered):
        raise Broke("slots that were run and slots that are covered do not add up")
    if [row.slot for row in rows] != sorted(row.slot for row in rows):
        raise Broke("a slot was claimed after a newer one")
    if rows[-1].outcome is not Outcome.INTERRUPTED and index(stored.last or 0) != index(rows[-1].slot):
        raise Broke("the fence does not stand at the newest run")
