"""A run that has failed: its row, its slot that is given back, and the streak that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from app.core.errors import Failure
from app.sweeping.ledger.runs import Claimed, Interrupted
from app.sweeping.schedule import Slot, moment
from app.sweeping.streak import Counted, Telling, count_failure

if TYPE_CHECKING:
    from psycopg import Cursor


GIVE_BACK = """
UPDATE secrets_bridge_worker.sweep_state SET last_slot = previous_slot
 WHERE name = %(name)s AND token = %(token)s
"""

# Who claims holds this row and then closes what is open: in that order it is done here as well. Else each could wait
# for the other; and a statement that has waited for a commit still judges other rows by what was there before it.
HOLD_FENCE = "SELECT FROM secrets_bridge_worker.sweep_state WHERE name = %(name)s FOR NO KEY UPDATE"

# A run that its successor has closed as interrupted, before it could write that it failed, has failed all the same. Its
# slot is not given back, and counts as run: the successor has not covered it. What the row has is what was committed:
# the run knows less if the answer to its last commit was lost.
CLOSE_FAILED = """
WITH before AS (SELECT outcome FROM secrets_bridge_worker.sweep_run WHERE id = %(run)s)
UPDATE secrets_bridge_worker.sweep_run
   SET finished_at = clock_timestamp(), error_class = %(error)s, sqlstate = %(sqlstate)s,
       outcome = CASE outcome WHEN 'running' THEN 'failure' ELSE outcome END
 WHERE id = %(run)s AND outcome IN ('running', 'interrupted')
   AND NOT EXISTS (SELECT FROM secrets_bridge_worker.sweep_run AS later
                    WHERE later.name = %(name)s AND later.id > %(run)s AND later.outcome = 'success')
RETURNING (SELECT outcome FROM before) AS before, changed, counts, cutoff
"""

RECORD_FAILED = """
INSERT INTO secrets_bridge_worker.sweep_run
       (name, slot, worker, requested_by, started_at, finished_at, outcome, error_class, sqlstate)
VALUES (%(name)s, %(slot)s, %(worker)s, %(requested_by)s, %(started_at)s, clock_timestamp(), 'failure', %(error)s,
        %(sqlstate)s)
"""


def fail(
    cursor: Cursor[dict[str, Any]], claimed: Claimed, failure: Failure, telling: Telling
) -> tuple[Counted | None, Interrupted | None]:
    """Close the run as failed, give its slot back and count the failure.

    Return the streak, None when it is no failure: its last commit was done although the answer was lost, or the sweep
    has succeeded since. And what it had committed, None when a newer run has reported that already.
    """
    name = {"name": claimed.name}
    cursor.execute(HOLD_FENCE, name)
    row = cursor.execute(CLOSE_FAILED, {**name, "run": claimed.run, **failure._asdict()}).fetchone()
    if row is None:
        return None, None
    cursor.execute(GIVE_BACK, {**name, "token": claimed.claim.token})
    reported = row.pop("before") == "interrupted"
    return count_failure(cursor, claimed.name, telling), None if reported else Interrupted(**row)


def record_failed(  # noqa: PLR0913, PLR0917 - what a row of a failure has
    cursor: Cursor[dict[str, Any]],
    name: str,
    slot: Slot,
    attempt: Mapping[str, object],
    failure: Failure,
    telling: Telling,
) -> Counted:
    """Write down an attempt that failed before its claim was committed; return the streak that it belongs to.

    `attempt` has its `started_at`, its `worker` and by whom it was `requested_by`.
    """
    cursor.execute(RECORD_FAILED, {"name": name, "slot": moment(slot), **attempt, **failure._asdict()})
    return count_failure(cursor, name, telling)
