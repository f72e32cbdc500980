"""A run's row: opened under its claim, written in each of its transactions while the fence stands, and closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg.types.json import Jsonb

from app.core.errors import Fenced, NotDue, Reason
from app.core.jsonb import whole_numbers
from app.sweeping.ledger.claims import Claim
from app.sweeping.ledger.transactions import Answers, send
from app.sweeping.schedule import Slot, moment
from app.sweeping.steering import pauses
from app.sweeping.streak import Streak

if TYPE_CHECKING:
    from psycopg import Connection, Cursor


# A failure of the run before may be counted while this one is under way, but not while the row is held.
FENCE = """
SELECT failures, failing_since, reported_at FROM secrets_bridge_worker.sweep_state
 WHERE name = %(name)s AND token = %(token)s FOR SHARE
"""

# Whoever left a row open is fenced off by our claim; what it had committed is reported by us.
INTERRUPT = """
UPDATE secrets_bridge_worker.sweep_run
   SET outcome = 'interrupted', finished_at = now()
 WHERE name = %(name)s AND outcome = 'running'
RETURNING changed, counts, cutoff
"""

OPEN = """
INSERT INTO secrets_bridge_worker.sweep_run
       (name, slot, covered, token, worker, requested_by, started_at, cutoff, outcome)
VALUES (%(name)s, %(slot)s, %(covered)s, %(token)s, %(worker)s, %(requested_by)s, now(), %(cutoff)s, 'running')
    ON CONFLICT (name, slot) WHERE outcome IN ('running', 'success') DO NOTHING
RETURNING id
"""

COUNT = """
UPDATE secrets_bridge_worker.sweep_run
   SET changed = %(changed)s, batches = %(batches)s, counts = %(counts)s
 WHERE id = %(run)s
"""

DURABLE = "SET LOCAL synchronous_commit TO DEFAULT"

FINISH = """
WITH finished AS (
    UPDATE secrets_bridge_worker.sweep_run
       SET changed = %(changed)s, batches = %(batches)s, counts = %(counts)s,
           finished_at = clock_timestamp(), outcome = 'success', handed_over = %(handed_over)s
     WHERE id = %(run)s
)
UPDATE secrets_bridge_worker.sweep_state
   SET position = %(position)s, failures = 0, failing_since = NULL, reported_at = NULL, rows_failed = %(rows_failed)s,
       pass_rows_failed = %(pass_rows_failed)s, batch_rows = %(batch_rows)s
 WHERE name = %(name)s AND token = %(token)s
   AND (position, failures, rows_failed, pass_rows_failed, batch_rows)
       IS DISTINCT FROM (%(position)s::bigint, 0::bigint, %(rows_failed)s::bigint, %(pass_rows_failed)s::bigint,
                         %(batch_rows)s::integer)
"""

MOVE_ON = """
UPDATE secrets_bridge_worker.sweep_state SET position = %(position)s WHERE name = %(name)s AND token = %(token)s
"""

PRUNE = f"""
WITH ahead AS (
    UPDATE secrets_bridge_worker.sweeper_pause SET resumed_at = clock_timestamp()
     WHERE name = %(name)s AND resumed_at IS NULL AND {pauses.AHEAD}
), pauses AS (
    DELETE FROM secrets_bridge_worker.sweeper_pause
     WHERE name = %(name)s AND coalesce(resumed_at, until) < now() - %(retention)s
)
DELETE FROM secrets_bridge_worker.sweep_run
 WHERE id = ANY (ARRAY(SELECT id FROM secrets_bridge_worker.sweep_run
                        WHERE name = %(name)s AND outcome <> 'running' AND started_at < now() - %(retention)s
                          AND (outcome <> 'success' OR slot < (
                               SELECT last_slot FROM secrets_bridge_worker.sweep_state WHERE name = %(name)s))
                        ORDER BY started_at LIMIT 200))
"""  # noqa: S608 - all its parts are literals


class Interrupted(NamedTuple):
    """What a run that never came to its end had committed."""

    changed: int
    counts: dict[str, int]
    cutoff: datetime | None


class Progress(NamedTuple):
    """What a run has done so far."""

    changed: int
    batches: int
    counts: Mapping[str, int]

    def columns(self) -> dict[str, object]:
        """Return the values of the row's columns."""
        return {"changed": self.changed, "batches": self.batches, "counts": Jsonb(dict(self.counts))}


class Rest(NamedTuple):
    """What a run leaves to the next one."""

    #: Where the next run goes on; None when nothing is left.
    position: int | None
    #: Rows that could not be swept in the last pass through the table, and so far in the one under way.
    rows_failed: int = 0
    pass_rows_failed: int = 0
    #: Rows a batch, where the usual number is too slow.
    batch_rows: int | None = None


class Claimed(NamedTuple):
    """A claim with its row in the ledger; times aware, UTC."""

    name: str
    claim: Claim
    #: The id of its row in the ledger.
    run: int
    began: datetime
    cutoff: datetime
    #: What unfinished runs before it had committed.
    interrupted: Sequence[Interrupted]

    @property
    def slot(self) -> Slot:
        """The slot that is run."""
        return self.claim.slot

    @property
    def lateness(self) -> float:
        """Seconds from the start of the slot to that of the run; 0 for one that was a little early."""
        return max(0.0, (self.began - moment(self.slot)).total_seconds())


def open_run(  # noqa: PLR0913 - what a row begins with
    connection: Connection[Any],
    name: str,
    claim: Claim,
    *,
    worker: str,
    cutoff: datetime,
    requested_by: str | None = None,
) -> Answers:
    """Close what runs before have left open, and open the claim's row."""
    row = {"name": name, "slot": moment(claim.slot), "covered": claim.covered, "token": claim.token}
    who = {"worker": worker, "requested_by": requested_by}
    return Answers(send(connection, INTERRUPT, name=name), send(connection, OPEN, **row, **who, cutoff=cutoff))


def opened(answers: Answers, name: str, claim: Claim, *, began: datetime, cutoff: datetime) -> Claimed:
    """Read the answers to `open_run`. Raises NotDue when the slot was finished after the claim had looked."""
    interrupting, opening = answers.cursors
    interrupted = [Interrupted(run["changed"], whole_numbers(run["counts"]), run["cutoff"]) for run in interrupting]
    run = opening.fetchone()
    if run is None:
        raise NotDue(Reason.SUPERSEDED)
    return Claimed(name, claim, run["id"], began, cutoff, interrupted)


def fence(connection: Connection[Any], claimed: Claimed) -> Cursor[dict[str, Any]]:
    """Hold the fence until the transaction ends."""
    return send(connection, FENCE, name=claimed.name, token=claimed.claim.token)


def fenced(cursor: Cursor[dict[str, Any]]) -> Streak:
    """Read the answer to `fence`: the sweeper's streak of failures. Raises Fenced when a newer run has moved it."""
    row = cursor.fetchone()
    if row is None:
        raise Fenced
    return Streak.of(row)


def count(cursor: Cursor[dict[str, Any]], claimed: Claimed, progress: Progress) -> None:
    """Write down what the run has done so far, in the transaction that did it."""
    cursor.execute(COUNT, {"run": claimed.run, **progress.columns()})


def finish(cursor: Cursor[dict[str, Any]], claimed: Claimed, progress: Progress, rest: Rest) -> None:
    """Close the run as done, in a transaction that is kept once it is committed."""
    if progress.batches > 1:  # the first has been durable from its beginning
        cursor.execute(DURABLE)
    row = {"run": claimed.run, "name": claimed.name, "token": claimed.claim.token, **progress.columns()}
    left = {**rest._asdict(), "position": rest.position or 0}
    cursor.execute(FINISH, {**row, **left, "handed_over": rest.position is not None})


def move_on(cursor: Cursor[dict[str, Any]], claimed: Claimed, position: int) -> None:
    """Have the next run go on from here, although this one is to end as failed."""
    cursor.execute(MOVE_ON, {"name": claimed.name, "token": claimed.claim.token, "position": position})


def prune(cursor: Cursor[dict[str, Any]], name: str, retention: timedelta) -> None:
    """Delete rows of the ledger that are older than this, some at a time; at the end of each run, however it ended."""
    cursor.execute(PRUNE, {"name": name, "retention": retention})
