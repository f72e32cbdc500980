"""The fence and the ledger: what PostgreSQL decides about a run, and what it remembers.

A slot is claimed by one statement that moves `sweep_state` forward and takes a new token, in the transaction of the
run's first batch. Every later batch holds that row FOR SHARE and does nothing when the token has moved. So a run that
was paused, or whose Redis lock lied, can neither claim a slot twice nor write after its successor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from app.core.errors import Failure, Fenced, NotDue, Reason
from app.storage.postgres import only_row
from app.sweeping import clocks
from app.sweeping.scans.tables import PAGES_OF_SWEPT, is_there
from app.sweeping.schedule import Slot, microseconds, moment, slot_at
from app.sweeping.steering import pauses
from app.sweeping.streak import Counted, Streak, Telling, count_failure

if TYPE_CHECKING:
    from psycopg import Connection, Cursor

    from app.sweeping.steering.order import Order

# All limits are shorter than the lease: a statement, a wait or a pause that outlives the lock must end first. They come
# before all else: even to ask how large a table is waits for who has locked it. Tables are gone through by their pages
# or an index, whatever the statistics say, and in their order. Between a run's first commit and its last nothing waits
# for the disk: should the server crash, what it forgets is the end of the run, rows and counts alike, and those rows
# are swept again.
LIMIT = """
SELECT set_config('statement_timeout', %(statement)s, true),
       set_config('lock_timeout', %(lock)s, true),
       set_config('idle_in_transaction_session_timeout', %(idle)s, true),
       CASE WHEN current_setting('server_version_num')::int >= 170000
            THEN set_config('transaction_timeout', %(transaction)s, true) END,
       set_config('enable_seqscan', 'off', true),
       set_config('synchronize_seqscans', 'off', true),
       set_config('max_parallel_workers_per_gather', '0', true),
       CASE WHEN NOT %(durable)s THEN set_config('synchronous_commit', 'off', true) END
"""

PRESENT = is_there("%(relation)s")
BEGIN = f"""
SELECT now() AS now,{PRESENT} AS present,
       CASE swept.relkind WHEN 'p' THEN (SELECT count(*) FROM pg_partition_tree(swept.oid) WHERE isleaf)
            ELSE 1 END AS partitions,
{PAGES_OF_SWEPT} AS pages,
       CASE WHEN relpages > 0 THEN greatest(reltuples, 0) / relpages ELSE 0 END::float8 AS rows_per_page
  FROM (SELECT to_regclass(%(table)s) AS oid) AS named
  LEFT JOIN pg_class AS swept USING (oid)
"""  # noqa: S608 - all its parts are literals
# How large a table is nobody learns while somebody holds it; that a run has failed for this must be written down.
LOOK = f"SELECT now() AS now, {PRESENT} AS present"
DURABLE = "SET LOCAL synchronous_commit TO DEFAULT"

# The newest slot that is due, or the tick's own, which may be ahead of this clock by half an interval: one that is
# further ahead stands for the newest slot that is due, as an old one does. It may be claimed when it is the newest one,
# or when it was claimed and never finished: whoever claimed it has lost the lock that we hold. A newest slot that lies
# further ahead than a slot may comes from a database whose clock was wrong for a while, and does not count.
#
# A run by hand has a slot of its own: this moment, or the next one after a slot that was claimed a little early. So it
# comes after all that was claimed, and the tick of the slot that it lies in finds its work done. What it leaves behind
# when it fails is the slot before, whichever that was.
CLAIM = f"""
WITH before AS (
    SELECT last_slot FROM secrets_bridge_worker.sweep_state WHERE name = %(name)s
), clock AS (
    SELECT date_bin(%(interval)s, now(), 'epoch') AS current, %(tick)s::timestamptz AS tick,
           CASE WHEN (SELECT last_slot FROM before) BETWEEN now() AND now() + %(interval)s
                THEN (SELECT last_slot FROM before) + interval '1 microsecond' ELSE now() END AS by_hand
), due AS (
    SELECT CASE WHEN %(by_hand)s THEN by_hand
                WHEN tick > current AND tick - now() <= %(interval)s / 2 THEN tick ELSE current END AS slot FROM clock
), paused AS (
    SELECT NOT %(despite_pause)s AND EXISTS (
           SELECT FROM secrets_bridge_worker.sweeper_pause WHERE name = %(name)s AND {pauses.HOLDS}) AS paused
), claimed AS (
    INSERT INTO secrets_bridge_worker.sweep_state AS state (name, last_slot, previous_slot, token)
    SELECT %(name)s, slot, 'epoch', 1 FROM due, paused WHERE NOT paused
        ON CONFLICT (name) DO UPDATE
       SET last_slot = excluded.last_slot,
           previous_slot = CASE WHEN state.last_slot = excluded.last_slot THEN state.previous_slot
                                WHEN %(by_hand)s AND state.last_slot < excluded.last_slot THEN state.last_slot
                                ELSE least(state.last_slot, excluded.last_slot - %(interval)s) END,
           token = state.token + 1
     WHERE (state.last_slot < excluded.last_slot OR state.last_slot > now() + %(interval)s
            OR state.last_slot = excluded.last_slot AND NOT %(by_hand)s)
       AND NOT EXISTS (SELECT FROM secrets_bridge_worker.sweep_run
                        WHERE name = %(name)s AND slot = excluded.last_slot AND outcome = 'success')
 RETURNING token, previous_slot, position, failures, failing_since, reported_at, rows_failed, pass_rows_failed,
           batch_rows, braked_for IS NOT NULL AS braked
)
SELECT paused.paused, due.slot, before.last_slot, claimed.*
  FROM paused CROSS JOIN due LEFT JOIN before ON true LEFT JOIN claimed ON true
"""  # noqa: S608 - all its parts are literals

# Slots that a clock ahead has run are to be run when their time has come.
FORGET = """
UPDATE secrets_bridge_worker.sweep_run SET outcome = 'interrupted'
 WHERE name = %(name)s AND slot > %(slot)s AND outcome = 'success'
"""

# The slot of this moment was run, and it may be that a clock ahead did it: those behind it are to be run all the same.
SET_BACK = """
UPDATE secrets_bridge_worker.sweep_state AS state
   SET last_slot = %(slot)s, previous_slot = least(state.previous_slot, %(slot)s - %(interval)s), token = token + 1
 WHERE name = %(name)s AND last_slot > now() + %(interval)s
"""

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

GIVE_BACK = """
UPDATE secrets_bridge_worker.sweep_state SET last_slot = previous_slot
 WHERE name = %(name)s AND token = %(token)s
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
       (name, slot, worker, requested_by, started_at, finished_at, outcome, error_class, sqlstate)
VALUES (%(name)s, %(slot)s, %(worker)s, %(requested_by)s, %(started_at)s, clock_timestamp(), 'failure', %(error)s,
        %(sqlstate)s)
"""


class Limits(NamedTuple):
    """What a transaction may take before PostgreSQL ends it, milliseconds as texts."""

    statement: str
    lock: str
    idle: str
    #: The whole of it, which counts where the others do not: while a client that has fallen silent had more to send.
    transaction: str

    @classmethod
    def below(cls, lease: timedelta) -> Limits:
        """Derive the limits from the lease: a third, a sixth and a quarter of it, and all of it."""
        ms = lease // timedelta(milliseconds=1)
        return cls(str(ms // 3), str(ms // 6), str(max(500, ms // 4)), str(ms))


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


class Begun(NamedTuple):
    """The time of a transaction, and how large the swept table is."""

    now: datetime
    #: How many pages it has, or the largest of its partitions, and how many of those there are.
    pages: int
    partitions: int
    #: How many rows lie on a page, by the statistics; 0 when there are none.
    rows_per_page: float


class Claim(NamedTuple):
    """A slot that this transaction takes, by its fencing token, and what the run before has left to this one."""

    slot: Slot
    token: int
    #: How many slots before this one no run was made for.
    covered: int
    #: Where the run before it stopped for lack of time.
    position: int
    #: Failed attempts since the last success.
    streak: Streak
    #: Rows that could not be swept in the last pass through the table, and so far in the one under way.
    rows_failed: int
    pass_rows_failed: int
    #: Rows a batch, where a run before found the usual number too slow.
    batch_rows: int | None
    #: Whether a brake has held the runs before it.
    braked: bool = False


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


class Answers:
    """What was sent together: cursors whose answers are read once they are there."""

    def __init__(self, *cursors: Cursor[dict[str, Any]]) -> None:
        self.cursors = cursors

    @property
    def arrived(self) -> bool:
        """Whether none of them has failed, or was not executed since one before has."""
        return all(cursor.statusmessage for cursor in self.cursors)


def _send(connection: Connection[Any], query: LiteralString, **parameters: object) -> Cursor[dict[str, Any]]:
    return connection.cursor(row_factory=dict_row).execute(query, parameters)


def begin(
    connection: Connection[Any], relation: str, table: str, limits: Limits, *, durable: bool = True
) -> Cursor[dict[str, Any]]:
    """Set a transaction's limits and look for the api's `relation`: a table, or `table.column`."""
    connection.execute(LIMIT, {"durable": durable, **limits._asdict()})
    return _send(connection, BEGIN, relation=relation, table=table)


def begun(cursor: Cursor[dict[str, Any]]) -> Begun:
    """Read the answer to `begin`. Raises NotDue when the relation is missing."""
    row = only_row(cursor)
    if not row["present"]:
        raise NotDue(Reason.TABLE_MISSING)
    return Begun(row["now"], row["pages"] or 0, row["partitions"] or 1, row["rows_per_page"] or 0.0)


def look(cursor: Cursor[dict[str, Any]], relation: str, limits: Limits) -> datetime:
    """Set a transaction's limits and return when it began, whoever holds the api's table.

    Raises NotDue when the relation is missing.
    """
    cursor.execute(LIMIT, {"durable": True, **limits._asdict()})
    row = only_row(cursor.execute(LOOK, {"relation": relation}))
    if not row["present"]:
        raise NotDue(Reason.TABLE_MISSING)
    now: datetime = row["now"]
    return now


def claim(
    connection: Connection[Any], name: str, tick: Slot | None, interval: timedelta, order: Order | None = None
) -> Cursor[dict[str, Any]]:
    """Take the newest due slot, or the tick's, or one for a run by hand."""
    hand = {"by_hand": order is not None, "despite_pause": order is not None and order.despite_pause}
    return _send(connection, CLAIM, name=name, tick=None if tick is None else moment(tick), interval=interval, **hand)


def claimed(
    cursor: Cursor[dict[str, Any]], name: str, now: datetime, tick: Slot | None, interval: timedelta
) -> Claim | None:
    """Read the answer to `claim`; None, with something to commit, when the slot or a newer one was claimed.

    Raises NotDue while the sweeper is paused.
    """
    row = only_row(cursor)
    slot, last, previous, token = row.pop("slot"), row.pop("last_slot"), row.pop("previous_slot"), row.pop("token")
    if row.pop("paused"):
        raise NotDue(Reason.PAUSED)
    streak = Streak(row.pop("failures"), row.pop("failing_since"), row.pop("reported_at"))
    if tick is not None and moment(tick) > slot:
        clocks.report("redis", moment(tick) - now, interval / 2, name)
    if last is not None and last > now + interval:
        clocks.report("postgres", last - now, interval, name)
        words = {"name": name, "slot": slot, "interval": interval}
        cursor.connection.execute(SET_BACK, words)
        cursor.connection.execute(FORGET, words)
    if token is None:
        return None
    return Claim(microseconds(slot), token, _covered(slot, previous, interval), streak=streak, **row)


def _covered(slot: datetime, previous: datetime, interval: timedelta) -> int:
    """Return how many slots of the cadence lie between those in which two runs begin."""
    if previous == moment(0):  # the very first claim follows "the epoch", which is not a slot that anybody missed
        return 0
    ours, theirs = (moment(slot_at(microseconds(time), interval)) for time in (slot, previous))
    return max(0, (ours - theirs) // interval - 1)


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
    return Answers(_send(connection, INTERRUPT, name=name), _send(connection, OPEN, **row, **who, cutoff=cutoff))


def opened(answers: Answers, name: str, claim: Claim, *, began: datetime, cutoff: datetime) -> Claimed:
    """Read the answers to `open_run`. Raises NotDue when the slot was finished after the claim had looked."""
    interrupting, opening = answers.cursors
    interrupted = [Interrupted(**run) for run in interrupting]
    run = opening.fetchone()
    if run is None:
        raise NotDue(Reason.SUPERSEDED)
    return Claimed(name, claim, run["id"], began, cutoff, interrupted)


def fence(connection: Connection[Any], claimed: Claimed) -> Cursor[dict[str, Any]]:
    """Hold the fence until the transaction ends."""
    return _send(connection, FENCE, name=claimed.name, token=claimed.claim.token)


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


def fail(
    cursor: Cursor[dict[str, Any]], claimed: Claimed, failure: Failure, telling: Telling
) -> tuple[Counted | None, bool]:
    """Close the run as failed, give its slot back and count the failure.

    Return the streak, None when it is no failure: its last commit was done although the answer was lost, or the sweep
    has succeeded since. And whether a newer run has reported already what this one had changed.
    """
    closed = {"run": claimed.run, "name": claimed.name, **failure._asdict()}
    row = cursor.execute(CLOSE_FAILED, closed).fetchone()
    if row is None:
        return None, True
    cursor.execute(GIVE_BACK, {"name": claimed.name, "token": claimed.claim.token})
    return count_failure(cursor, claimed.name, telling), row["outcome"] == "interrupted"


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
