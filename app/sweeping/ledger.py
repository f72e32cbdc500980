"""The fence and the ledger: what PostgreSQL decides about a run, and what it remembers.

A slot is claimed by one statement that moves `sweep_state` forward and takes a new token, in the transaction of the
run's first batch. Every later batch holds that row FOR SHARE and does nothing when the token has moved. So a run that
was paused, or whose Redis lock lied, can neither claim a slot twice nor write after its successor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg.types.json import Jsonb

from app.core.errors import Failure, Fenced, NotDue, Reason
from app.storage.postgres import only_row
from app.sweeping import clocks
from app.sweeping.schedule import Slot, moment

if TYPE_CHECKING:
    from psycopg import Cursor

# All limits are shorter than the lease: a statement, a wait or a pause that outlives the lock must end first.
BEGIN = """
SELECT now() AS now,
       EXISTS (SELECT FROM pg_attribute
                WHERE attrelid = to_regclass(split_part(%(relation)s, '.', 1)) AND NOT attisdropped
                  AND split_part(%(relation)s, '.', 2) IN ('', attname)) AS present,
       set_config('statement_timeout', %(statement)s, true),
       set_config('lock_timeout', %(lock)s, true),
       set_config('idle_in_transaction_session_timeout', %(idle)s, true)
"""

# A slot may be claimed when it is the newest one, or when it was claimed and never finished: whoever claimed it has
# lost the lock that we hold. A newest slot that lies further ahead than a slot may comes from a database whose clock
# was wrong for a while, and does not count.
CLAIM = """
WITH before AS (SELECT last_slot FROM secrets_bridge_worker.sweep_state WHERE name = %(name)s)
INSERT INTO secrets_bridge_worker.sweep_state AS state (name, last_slot, previous_slot, token)
VALUES (%(name)s, %(slot)s, 'epoch', 1)
    ON CONFLICT (name) DO UPDATE
   SET last_slot = excluded.last_slot,
       previous_slot = CASE WHEN state.last_slot = excluded.last_slot THEN state.previous_slot
                            ELSE least(state.last_slot, excluded.last_slot - %(interval)s) END,
       token = state.token + 1
 WHERE (state.last_slot <= excluded.last_slot OR state.last_slot > %(furthest)s)
   AND NOT EXISTS (SELECT FROM secrets_bridge_worker.sweep_run
                    WHERE name = %(name)s AND slot = %(slot)s AND outcome = 'success')
RETURNING token, previous_slot, position, failures, rows_failed, batch_rows, (SELECT last_slot FROM before) AS last_slot
"""

# Slots that a clock ahead has run are to be run when their time has come.
FORGET = """
UPDATE secrets_bridge_worker.sweep_run SET outcome = 'interrupted'
 WHERE name = %(name)s AND slot > %(slot)s AND outcome = 'success'
"""

# The slot of this moment was run, and it may be that a clock ahead did it: those behind it are to be run all the same.
SET_BACK = """
WITH before AS (SELECT last_slot FROM secrets_bridge_worker.sweep_state WHERE name = %(name)s)
UPDATE secrets_bridge_worker.sweep_state AS state
   SET last_slot = %(slot)s, previous_slot = least(state.previous_slot, %(slot)s - %(interval)s), token = token + 1
 WHERE name = %(name)s AND last_slot > %(furthest)s
RETURNING (SELECT last_slot FROM before) AS last_slot
"""

FENCE = """
SELECT FROM secrets_bridge_worker.sweep_state WHERE name = %(name)s AND token = %(token)s FOR SHARE
"""

# Whoever left a row open is fenced off by our claim; what it had committed is reported by us.
INTERRUPT = """
UPDATE secrets_bridge_worker.sweep_run
   SET outcome = 'interrupted', finished_at = now()
 WHERE name = %(name)s AND outcome = 'running'
RETURNING changed, counts, cutoff
"""

OPEN = """
INSERT INTO secrets_bridge_worker.sweep_run (name, slot, covered, token, worker, started_at, cutoff, outcome)
VALUES (%(name)s, %(slot)s, %(covered)s, %(token)s, %(worker)s, now(), %(cutoff)s, 'running')
    ON CONFLICT (name, slot) WHERE outcome IN ('running', 'success') DO NOTHING
RETURNING id
"""

COUNT = """
UPDATE secrets_bridge_worker.sweep_run
   SET changed = %(changed)s, batches = %(batches)s, counts = %(counts)s
 WHERE id = %(run)s
"""

FINISH = """
UPDATE secrets_bridge_worker.sweep_run
   SET changed = %(changed)s, batches = %(batches)s, counts = %(counts)s,
       finished_at = clock_timestamp(), outcome = 'success', handed_over = %(handed_over)s
 WHERE id = %(run)s
"""

REMEMBER = """
UPDATE secrets_bridge_worker.sweep_state
   SET position = %(position)s, failures = 0, rows_failed = %(rows_failed)s, batch_rows = %(batch_rows)s
 WHERE name = %(name)s AND token = %(token)s
   AND (position, failures, rows_failed, batch_rows)
       IS DISTINCT FROM (%(position)s::bigint, 0::bigint, %(rows_failed)s::bigint, %(batch_rows)s::integer)
"""

MOVE_ON = """
UPDATE secrets_bridge_worker.sweep_state SET position = %(position)s WHERE name = %(name)s AND token = %(token)s
"""

PRUNE = """
DELETE FROM secrets_bridge_worker.sweep_run
 WHERE id = ANY (ARRAY(SELECT id FROM secrets_bridge_worker.sweep_run
                        WHERE name = %(name)s AND outcome <> 'running' AND started_at < now() - %(retention)s
                          AND (outcome <> 'success' OR slot < (
                               SELECT last_slot FROM secrets_bridge_worker.sweep_state WHERE name = %(name)s))
                        ORDER BY started_at LIMIT 200))
"""

GIVE_BACK = """
UPDATE secrets_bridge_worker.sweep_state SET last_slot = previous_slot
 WHERE name = %(name)s AND token = %(token)s
"""

# The streak of failures is counted in the transaction that stores their events. So the first failure that can be stored
# is the one that is reported, and whatever was reported has an end.
COUNT_FAILURE = """
INSERT INTO secrets_bridge_worker.sweep_state AS state (name, last_slot, previous_slot, token, failures)
VALUES (%(name)s, 'epoch', 'epoch', 0, 1)
    ON CONFLICT (name) DO UPDATE SET failures = state.failures + 1
RETURNING failures
"""

# A run that its successor has closed as interrupted, before it could write that it failed, has failed all the same. Its
# slot is not given back, and counts as run: the successor has not covered it.
CLOSE_FAILED = """
WITH before AS (SELECT outcome FROM secrets_bridge_worker.sweep_run WHERE id = %(run)s)
UPDATE secrets_bridge_worker.sweep_run
   SET finished_at = clock_timestamp(), error_class = %(error)s, sqlstate = %(sqlstate)s,
       outcome = CASE outcome WHEN 'running' THEN 'failure' ELSE outcome END
 WHERE id = %(run)s AND outcome IN ('running', 'interrupted')
   AND NOT EXISTS (SELECT FROM secrets_bridge_worker.sweep_run AS later
                    WHERE later.name = %(name)s AND later.id > %(run)s AND later.outcome = 'success')
RETURNING (SELECT outcome FROM before) AS outcome
"""

RECORD_FAILED = """
INSERT INTO secrets_bridge_worker.sweep_run
       (name, slot, worker, started_at, finished_at, outcome, error_class, sqlstate)
VALUES (%(name)s, %(slot)s, %(worker)s, %(started_at)s, clock_timestamp(), 'failure', %(error)s, %(sqlstate)s)
"""


class Limits(NamedTuple):
    """What a transaction may take before PostgreSQL ends it, milliseconds as texts."""

    statement: str
    lock: str
    idle: str

    @classmethod
    def below(cls, lease: timedelta) -> Limits:
        """Derive the limits from the lease: a third, a sixth and a tenth of it."""
        ms = lease // timedelta(milliseconds=1)
        return cls(str(ms // 3), str(ms // 6), str(max(500, ms // 10)))


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
    #: Rows that could not be swept.
    rows_failed: int = 0
    #: Rows a batch, where the usual number is too slow.
    batch_rows: int | None = None


class Claimed(NamedTuple):
    """A slot that a run holds in PostgreSQL, by its fencing token; times aware, UTC."""

    name: str
    slot: Slot
    token: int
    #: The id of its row in the ledger.
    run: int
    began: datetime
    cutoff: datetime
    #: Where the run before it stopped for lack of time.
    position: int
    #: Failed attempts since the last success, and rows that the run before could not sweep.
    failures: int
    rows_failed: int
    #: Rows a batch, where a run before found the usual number too slow.
    batch_rows: int | None
    #: How many slots before this one no run was made for.
    covered: int
    #: What unfinished runs before it had committed.
    interrupted: Sequence[Interrupted]


def begin(cursor: Cursor[dict[str, Any]], relation: str, limits: Limits) -> datetime:
    """Open a transaction under its limits and return its time.

    Raises NotDue when the api's table, or `table.column`, is missing.
    """
    row = only_row(cursor.execute(BEGIN, {"relation": relation, **limits._asdict()}))
    if not row["present"]:
        raise NotDue(Reason.TABLE_MISSING)
    now: datetime = row["now"]
    return now


def claim(  # noqa: PLR0913 - what a row of the ledger says of its run
    cursor: Cursor[dict[str, Any]],
    name: str,
    slot: Slot,
    interval: timedelta,
    *,
    worker: str,
    now: datetime,
    cutoff: datetime,
) -> Claimed | None:
    """Take the slot and open its row; return None, with something to commit, when it or a newer one was claimed."""
    claim = {"name": name, "slot": moment(slot), "interval": interval, "furthest": now + interval}
    row = cursor.execute(CLAIM, claim).fetchone()
    before = row or cursor.execute(SET_BACK, claim).fetchone()
    last = before.pop("last_slot") if before else None
    if last is not None and last > claim["furthest"]:
        clocks.report("postgres", last - now, interval, name)
        cursor.execute(FORGET, claim)
    if row is None:
        return None
    interrupted = [Interrupted(**run) for run in cursor.execute(INTERRUPT, {"name": name})]
    previous = row.pop("previous_slot")
    # The very first claim follows "the epoch", which is not a slot that anybody missed.
    covered = max(0, (moment(slot) - previous) // interval - 1) if previous != moment(0) else 0
    opened = {"name": name, "slot": moment(slot), "covered": covered, "token": row["token"]}
    run = cursor.execute(OPEN, {**opened, "worker": worker, "cutoff": cutoff}).fetchone()
    if run is None:  # it was finished after our claim had looked
        raise NotDue(Reason.SUPERSEDED)
    return Claimed(name, slot, run=run["id"], began=now, cutoff=cutoff, covered=covered, interrupted=interrupted, **row)


def fence(cursor: Cursor[dict[str, Any]], claimed: Claimed) -> None:
    """Hold the fence until the transaction ends. Raises Fenced when a newer run has moved it."""
    if cursor.execute(FENCE, {"name": claimed.name, "token": claimed.token}).fetchone() is None:
        raise Fenced


def count(cursor: Cursor[dict[str, Any]], claimed: Claimed, progress: Progress) -> None:
    """Write down what the run has done so far, in the transaction that did it."""
    cursor.execute(COUNT, {"run": claimed.run, **progress.columns()})


def finish(cursor: Cursor[dict[str, Any]], claimed: Claimed, progress: Progress, rest: Rest) -> None:
    """Close the run as done."""
    cursor.execute(FINISH, {"run": claimed.run, "handed_over": rest.position is not None, **progress.columns()})
    left = {"position": rest.position or 0, "rows_failed": rest.rows_failed, "batch_rows": rest.batch_rows}
    cursor.execute(REMEMBER, {"name": claimed.name, "token": claimed.token, **left})


def move_on(cursor: Cursor[dict[str, Any]], claimed: Claimed, position: int) -> None:
    """Have the next run go on from here, although this one is to end as failed."""
    cursor.execute(MOVE_ON, {"name": claimed.name, "token": claimed.token, "position": position})


def prune(cursor: Cursor[dict[str, Any]], name: str, retention: timedelta) -> None:
    """Delete rows of the ledger that are older than this, some at a time; at the end of each run, however it ended."""
    cursor.execute(PRUNE, {"name": name, "retention": retention})


def fail(cursor: Cursor[dict[str, Any]], claimed: Claimed, failure: Failure) -> tuple[int, bool]:
    """Close the run as failed, give its slot back and count the failure.

    Return how many failures there were in a row, 0 when it is none: its last commit was done although the answer was
    lost, or the sweep has succeeded since. And whether a newer run has reported already what this one had changed.
    """
    closed = {"run": claimed.run, "name": claimed.name, **failure._asdict()}
    row = cursor.execute(CLOSE_FAILED, closed).fetchone()
    if row is None:
        return 0, True
    cursor.execute(GIVE_BACK, {"name": claimed.name, "token": claimed.token})
    return _count_failure(cursor, claimed.name), row["outcome"] == "interrupted"


def record_failed(  # noqa: PLR0913 - the same
    cursor: Cursor[dict[str, Any]], name: str, slot: Slot, *, started_at: datetime, worker: str, failure: Failure
) -> int:
    """Write down an attempt that failed before its claim was committed; return how many failed in a row."""
    attempt = {"name": name, "slot": moment(slot), "started_at": started_at, "worker": worker}
    cursor.execute(RECORD_FAILED, {**attempt, **failure._asdict()})
    return _count_failure(cursor, name)


def _count_failure(cursor: Cursor[dict[str, Any]], name: str) -> int:
    failures: int = only_row(cursor.execute(COUNT_FAILURE, {"name": name}))["failures"]
    return failures
