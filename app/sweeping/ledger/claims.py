"""Which slot a run claims, by PostgreSQL's clock alone, and what is put right when that was wrong."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from app.core.errors import NotDue, Reason
from app.storage.postgres import only_row
from app.sweeping import clocks
from app.sweeping.ledger.transactions import send
from app.sweeping.schedule import Slot, microseconds, moment, slot_at
from app.sweeping.steering import pauses
from app.sweeping.streak import Streak

if TYPE_CHECKING:
    from psycopg import Connection, Cursor

    from app.sweeping.steering.order import Order


# A slot may be claimed half an interval before it begins, and a clock that is being adjusted adds little to that. What
# lies further ahead was claimed while this clock was wrong. A whole interval would be too much: the slot after the next
# would lie exactly so far ahead, and keep both from being run. The transaction's own time will not do: after a wait for
# the fence it is an old one, and what others have claimed meanwhile would look like a clock that was ahead.
_FAR: LiteralString = "clock_timestamp() + %(interval)s * 0.75"


def _ahead(slot: LiteralString) -> LiteralString:
    """Return the condition that the newest slot was claimed while this clock was ahead, and is to be claimed again.

    So was one that is nearer, if its run began in what is still to come. A clock that was ahead by less than a lease
    keeps the next run waiting for no longer than a holder that was killed does: there is nothing to be put right.
    """
    return f"""({slot} > {_FAR} OR {slot} > clock_timestamp() + %(lease)s AND EXISTS (
            SELECT FROM secrets_bridge_worker.sweep_run
             WHERE name = %(name)s AND slot = {slot} AND outcome IN ('running', 'success')
               AND started_at > clock_timestamp() + %(lease)s))"""


# The newest slot that is due, or the tick's own, which may be ahead of this clock by half an interval: one that is
# further ahead stands for the newest slot that is due, as an old one does. It may be claimed when it is the newest one,
# or when it was claimed and never finished: whoever claimed it has lost the lock that we hold. A newest slot that was
# claimed by a clock that was ahead does not count. A tick of another cadence, while one is being changed, stands for
# the slot of ours that it lies in.
#
# A run by hand has a slot of its own: this moment, or the next one after a slot that was claimed a little early. So it
# comes after all that was claimed, and the tick of the slot that it lies in finds its work done. What it leaves behind
# when it fails is the slot before, whichever that was.
CLAIM = f"""
WITH before AS (
    SELECT token, last_slot, {_ahead("last_slot")} AS ahead
      FROM secrets_bridge_worker.sweep_state WHERE name = %(name)s
), clock AS (
    SELECT date_bin(%(interval)s, now(), 'epoch') AS current,
           date_bin(%(interval)s, %(tick)s::timestamptz, 'epoch') AS tick,
           CASE WHEN (SELECT last_slot >= now() AND NOT ahead FROM before)
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
                                WHEN state.last_slot < excluded.last_slot THEN state.last_slot
                                ELSE excluded.last_slot - %(interval)s END,
           token = state.token + 1
     WHERE (state.last_slot < excluded.last_slot OR {_ahead("state.last_slot")}
            OR state.last_slot = excluded.last_slot AND NOT %(by_hand)s)
       AND NOT EXISTS (SELECT FROM secrets_bridge_worker.sweep_run
                        WHERE name = %(name)s AND slot = excluded.last_slot AND outcome = 'success')
 RETURNING token, previous_slot, position, failures, failing_since, reported_at, rows_failed, pass_rows_failed,
           batch_rows, braked_for IS NOT NULL AS braked
)
SELECT paused.paused, due.slot, before.last_slot, coalesce(before.ahead, false) AS ahead,
       claimed.token <> before.token + 1 AS contested, claimed.*
  FROM paused CROSS JOIN due LEFT JOIN before ON true LEFT JOIN claimed ON true
"""  # noqa: S608 - all its parts are literals

# Slots that a clock ahead has run are to be run when their time has come: those after the fence, which somebody else
# may have moved meanwhile.
FORGET = """
UPDATE secrets_bridge_worker.sweep_run SET outcome = 'interrupted'
 WHERE name = %(name)s AND outcome = 'success'
   AND slot > (SELECT last_slot FROM secrets_bridge_worker.sweep_state WHERE name = %(name)s)
"""

# The slot of this moment was run, and it may be that a clock ahead did it: those behind it are to be run all the same.
SET_BACK = f"""
UPDATE secrets_bridge_worker.sweep_state AS state
   SET last_slot = %(slot)s, previous_slot = least(state.previous_slot, %(slot)s - %(interval)s), token = token + 1
 WHERE name = %(name)s AND {_ahead("last_slot")}
"""  # noqa: S608 - all its parts are literals


class Lengths(NamedTuple):
    """Lengths of time by which slots are judged."""

    #: How often the sweeper is run.
    interval: timedelta
    #: How long a lock outlives its holder.
    lease: timedelta


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


def claim(
    connection: Connection[Any], name: str, tick: Slot | None, lengths: Lengths, order: Order | None = None
) -> Cursor[dict[str, Any]]:
    """Take the newest due slot, or the tick's, or one for a run by hand."""
    hand = {"by_hand": order is not None, "despite_pause": order is not None and order.despite_pause}
    when = {"tick": None if tick is None else moment(tick), **lengths._asdict()}
    return send(connection, CLAIM, name=name, **when, **hand)


def claimed(
    cursor: Cursor[dict[str, Any]], name: str, now: datetime, tick: Slot | None, lengths: Lengths
) -> Claim | None:
    """Read the answer to `claim`; None, with something to commit, when the slot or a newer one was claimed.

    Raises NotDue while the sweeper is paused.
    """
    row = only_row(cursor)
    slot, last, previous, token = row.pop("slot"), row.pop("last_slot"), row.pop("previous_slot"), row.pop("token")
    ahead, contested, interval = row.pop("ahead"), row.pop("contested"), lengths.interval
    if row.pop("paused"):
        raise NotDue(Reason.PAUSED)
    streak = Streak(row.pop("failures"), row.pop("failing_since"), row.pop("reported_at"))
    if tick is not None and moment(tick) > slot:
        clocks.report("redis", moment(tick) - now, interval / 2, name)
    if ahead:
        clocks.report("postgres", last - now, min(interval / 2, lengths.lease), name)
        if token is None:  # else the claim has; and the clock may have moved once more since
            cursor.connection.execute(SET_BACK, {"name": name, "slot": slot, **lengths._asdict()})
    if ahead or contested:  # a claim that came in between may have been ahead as well
        cursor.connection.execute(FORGET, {"name": name})
    if token is None:
        return None
    return Claim(microseconds(slot), token, _covered(slot, previous, interval), streak=streak, **row)


def _covered(slot: datetime, previous: datetime, interval: timedelta) -> int:
    """Return how many slots of the cadence lie between those in which two runs begin."""
    if previous == moment(0):  # the very first claim follows "the epoch", which is not a slot that anybody missed
        return 0
    ours, theirs = (moment(slot_at(microseconds(time), interval)) for time in (slot, previous))
    return max(0, (ours - theirs) // interval - 1)
