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
from app.sweeping.schedule import Slot, moment

if TYPE_CHECKING:
    from psycopg import Cursor

# All limits are shorter than the lease: a statement, a wait or a pause that outlives the lock must end first.
BEGIN = """
SELECT now() AS now,
       to_regclass(%(table)s) IS NOT NULL AS present,
       set_config('statement_timeout', %(statement)s, true),
       set_config('lock_timeout', %(lock)s, true),
       set_config('idle_in_transaction_session_timeout', %(idle)s, true)
"""

CLAIM = """
INSERT INTO secrets_bridge_worker.sweep_state AS state (name, last_slot, previous_slot, token)
VALUES (%(name)s, %(slot)s, 'epoch', 1)
    ON CONFLICT (name) DO UPDATE
   SET last_slot = excluded.last_slot, previous_slot = state.last_slot, token = state.token + 1
 WHERE state.last_slot < excluded.last_slot
RETURNING token, previous_slot, position
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
UPDATE secrets_bridge_worker.sweep_state SET position = %(position)s
 WHERE name = %(name)s AND token = %(token)s AND position <> %(position)s
"""

PRUNE = """
DELETE FROM secrets_bridge_worker.sweep_run
 WHERE id = ANY (ARRAY(SELECT id FROM secrets_bridge_worker.sweep_run
                        WHERE name = %(name)s AND outcome <> 'running' AND started_at < now() - %(retention)s
                        ORDER BY started_at LIMIT 200))
"""

GIVE_BACK = """
UPDATE secrets_bridge_worker.sweep_state SET last_slot = previous_slot
 WHERE name = %(name)s AND token = %(token)s
"""

CLOSE_FAILED = """
UPDATE secrets_bridge_worker.sweep_run
   SET finished_at = clock_timestamp(), outcome = 'failure', error_class = %(error)s, sqlstate = %(sqlstate)s
 WHERE id = %(run)s AND outcome = 'running'
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
    #: How many slots before this one no run was made for.
    covered: int
    #: What unfinished runs before it had committed.
    interrupted: Sequence[Interrupted]


def begin(cursor: Cursor[dict[str, Any]], table: str, limits: Limits) -> datetime:
    """Open a transaction under its limits and return its time. Raises NotDue when the api's table is missing."""
    row = only_row(cursor.execute(BEGIN, {"table": table, **limits._asdict()}))
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
) -> Claimed:
    """Take the slot and open its row. Raises NotDue when this slot or a newer one has been claimed."""
    row = cursor.execute(CLAIM, {"name": name, "slot": moment(slot)}).fetchone()
    if row is None:
        raise NotDue(Reason.SUPERSEDED)
    interrupted = [Interrupted(**run) for run in cursor.execute(INTERRUPT, {"name": name})]
    previous: datetime = row["previous_slot"]
    # The very first claim follows "the epoch", which is not a slot that anybody missed.
    covered = max(0, (moment(slot) - previous) // interval - 1) if previous != moment(0) else 0
    opened = {"name": name, "slot": moment(slot), "covered": covered, "token": row["token"]}
    run = only_row(cursor.execute(OPEN, {**opened, "worker": worker, "cutoff": cutoff}))
    return Claimed(name, slot, row["token"], run["id"], now, cutoff, row["position"], covered, interrupted)


def fence(cursor: Cursor[dict[str, Any]], claimed: Claimed) -> None:
    """Hold the fence until the transaction ends. Raises Fenced when a newer run has moved it."""
    if cursor.execute(FENCE, {"name": claimed.name, "token": claimed.token}).fetchone() is None:
        raise Fenced


def count(cursor: Cursor[dict[str, Any]], claimed: Claimed, progress: Progress) -> None:
    """Write down what the run has done so far, in the transaction that did it."""
    cursor.execute(COUNT, {"run": claimed.run, **progress.columns()})


def finish(
    cursor: Cursor[dict[str, Any]], claimed: Claimed, progress: Progress, *, position: int | None, retention: timedelta
) -> None:
    """Close the run as done. `position` is where the next run goes on, None when nothing is left."""
    cursor.execute(FINISH, {"run": claimed.run, "handed_over": position is not None, **progress.columns()})
    cursor.execute(REMEMBER, {"name": claimed.name, "token": claimed.token, "position": position or 0})
    cursor.execute(PRUNE, {"name": claimed.name, "retention": retention})


def fail(cursor: Cursor[dict[str, Any]], claimed: Claimed, failure: Failure) -> bool:
    """Close the run as failed and give its slot back, unless a newer run has claimed since.

    A run whose last commit was done although its answer was lost is closed already, and keeps its slot: then False.
    """
    if not cursor.execute(CLOSE_FAILED, {"run": claimed.run, **failure._asdict()}).rowcount:
        return False
    cursor.execute(GIVE_BACK, {"name": claimed.name, "token": claimed.token})
    return True


def record_failed(  # noqa: PLR0913 - the same
    cursor: Cursor[dict[str, Any]], name: str, slot: Slot, *, started_at: datetime, worker: str, failure: Failure
) -> None:
    """Write down an attempt that failed before its claim was committed."""
    attempt = {"name": name, "slot": moment(slot), "started_at": started_at, "worker": worker}
    cursor.execute(RECORD_FAILED, {**attempt, **failure._asdict()})
