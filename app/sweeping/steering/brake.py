"""The brake: a run that would change far more than usual stops before it changes anything, and somebody is asked.

Nothing about a row says that a mass of them is wrong: after an import that failed, or in a backup that was restored,
they are due like any other. So their number is judged before the first is changed, in the transaction that claims the
slot; a run that is held gives the slot back there. A catch-up after slots that nobody ran is expected to be large and
is never held, unless the database is another one than the last run has seen. After slots that were tried in vain what
is usual counts once for each of them: they would have changed that much.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

import psycopg
import structlog
from psycopg import sql

from app.core.errors import describe
from app.storage.postgres import only_row
from app.storage.transaction import bounded
from app.sweeping.scans.tables import LARGE
from app.sweeping.schedule import Slot, microseconds
from app.sweeping.steering.limits import USUAL_HOLD, BrakeLimits
from app.sweeping.steering.server import identity

if TYPE_CHECKING:
    from psycopg import Connection, Cursor

    from app.sweeping.scans.due import Due
    from app.sweeping.steering.order import Order

log = structlog.get_logger("sweep")

#: Numbers that never brake, by a multiple of what is usual and by a share of the table.
FEWEST_BY_USUAL, FEWEST_BY_SHARE = 1_000, 20
#: Milliseconds that a count may take at most.
COUNT_WITHIN = 2_000
#: By how much a hold may end early, at most: runs are late by this or that, and none is to miss the end by so little.
SLACK = timedelta(seconds=5)

# Until when Redis may know of slots that were not run: ticks of a paused sweeper are marked as done.
STATE = """
SELECT coalesce(braked_at, 'epoch') AS braked_at, braked_for, approved_at, server, clock_timestamp() AS now,
       greatest(previous_slot, (SELECT max(least(coalesce(resumed_at, until), now()))
                                  FROM secrets_bridge_worker.sweeper_pause WHERE name = %(name)s)) AS known_until
  FROM secrets_bridge_worker.sweep_state WHERE name = %(name)s
"""
# The middle one of the last runs that changed something, as far as the latest ones of the ledger have such.
USUAL = """
SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY size) AS usual
  FROM (SELECT size
          FROM (SELECT started_at, outcome, CASE WHEN %(changed)s THEN changed
                       ELSE (SELECT sum(CASE WHEN counts ->> word ~ '^[0-9]{1,18}$' THEN (counts ->> word)::bigint END)
                               FROM unnest(%(size)s::text[]) AS word) END AS size
                  FROM secrets_bridge_worker.sweep_run WHERE name = %(name)s
                 ORDER BY started_at DESC LIMIT 10000) AS latest
         WHERE outcome = 'success' AND size > 0
         ORDER BY started_at DESC LIMIT 20) AS runs
"""
TABLE_SIZE = """
SELECT sum(pg_relation_size(leaf.oid)) / current_setting('block_size')::int AS pages,
       sum(CASE WHEN relpages > 0 AND reltuples >= 0
                THEN reltuples / relpages * (pg_relation_size(leaf.oid) / current_setting('block_size')::int)
                END)::bigint AS rows
  FROM (SELECT relid AS oid FROM pg_partition_tree(to_regclass(%(table)s)) WHERE isleaf
        UNION SELECT to_regclass(%(table)s)) AS leaf
  JOIN pg_class ON pg_class.oid = leaf.oid AND relkind IN ('r', 'm')
"""
LIMIT = """
SELECT set_config('statement_timeout', %(statement)s, true), set_config('enable_seqscan', %(seqscan)s, true)
"""
# Held from its first such run on; the slot is given back.
HOLD = """
UPDATE secrets_bridge_worker.sweep_state
   SET last_slot = previous_slot, braked_for = %(reason)s, braked_rows = %(rows)s,
       braked_at = CASE WHEN braked_at <= now() THEN braked_at ELSE now() END
 WHERE name = %(name)s AND token = %(token)s
"""
LET_GO = """
UPDATE secrets_bridge_worker.sweep_state
   SET braked_at = NULL, braked_for = NULL, braked_rows = NULL,
       approved_at = CASE WHEN %(approved)s THEN now() ELSE approved_at END,
       approved_by = CASE WHEN %(approved)s THEN %(by)s ELSE approved_by END
 WHERE name = %(name)s AND token = %(token)s
"""
# What is approved is what is due, however many runs that takes: the first one that leaves nothing ends it.
SETTLE = """
UPDATE secrets_bridge_worker.sweep_state
   SET server = coalesce(%(server)s, server),
       approved_at = CASE WHEN %(handed_over)s THEN approved_at END,
       approved_by = CASE WHEN %(handed_over)s THEN approved_by END
 WHERE name = %(name)s AND token = %(token)s
   AND (approved_at IS NOT NULL OR server IS DISTINCT FROM coalesce(%(server)s, server))
"""
HELD = """
SELECT braked_for, coalesce(braked_at, 'epoch') AS braked_at, braked_rows FROM secrets_bridge_worker.sweep_state
 WHERE name = %(name)s AND braked_for IS NOT NULL
"""


class Why(StrEnum):
    """Why a run is held: a closed set."""

    USUAL = "usual"
    SHARE = "share"
    UNCOUNTED = "uncounted"


_TEXTS = {
    Why.USUAL: "far more rows are due than usual",
    Why.SHARE: "a large share of the table is due",
    Why.UNCOUNTED: "the rows that are due could not be counted",
}


class Hold(NamedTuple):
    """A run is held, from now on or still."""

    why: Why
    #: How many rows are due at least, how many may be, and what is usual; -1 where that is not known.
    rows: int
    limit: int
    usual: int
    #: Whether the runs before it were held already, so that people know.
    known: bool
    #: Whether the database seems to have been restored from a backup.
    restored: bool
    limits: BrakeLimits

    @property
    def text(self) -> str:
        """Why, and how it ends."""
        restored = "; the database seems to be a restored backup" if self.restored else ""
        return f"{_TEXTS[self.why]}{restored}; {self.limits.ending}"

    @property
    def numbers(self) -> dict[str, int]:
        """Those that are known."""
        numbers = {"due_at_least": self.rows, "limit": self.limit, "usual": self.usual}
        return {name: number for name, number in numbers.items() if number >= 0}


class Held(NamedTuple):
    """A hold as the ledger has it."""

    braked_for: str
    braked_at: datetime
    braked_rows: int | None

    @property
    def text(self) -> str:
        """Why and since when."""
        why = _TEXTS[Why(self.braked_for)] if self.braked_for in list(Why) else self.braked_for
        rows = f", at least {self.braked_rows:,}" if self.braked_rows and self.braked_rows > 0 else ""
        return f"{why}{rows}, since {self.braked_at.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"


def held(connection: Connection[Any], name: str) -> Held | None:
    """Return what holds a sweeper's runs, as the last of them has found."""
    with bounded(connection) as cursor:
        row = cursor.execute(HELD, {"name": name}).fetchone()
    return Held(**row) if row else None


class Claiming(NamedTuple):
    """A claim that is to be judged."""

    name: str
    token: int
    #: How many slots before it nobody ran, and how many attempts in a row have failed.
    covered: int
    failures: int
    #: The newest slot that Redis knows as done.
    mark: Slot | None
    order: Order | None
    #: What a statement may take otherwise, milliseconds.
    statement: str


class Brake:
    """The brake of one run."""

    def __init__(self, limits: BrakeLimits | None, due: Due | None, size: Sequence[str]) -> None:
        self._limits = limits
        self._due = due
        self._size = list(size)
        #: Which server this is; None where that was not asked.
        self._server: str | None = None

    def judge(self, cursor: Cursor[dict[str, Any]], claim: Claiming) -> Hold | None:
        """Return why the run is held, with its slot given back; None when it may go on."""
        row = only_row(cursor.execute(STATE, {"name": claim.name}))
        known = row["braked_for"] is not None
        words = {"name": claim.name, "token": claim.token}
        if self._limits is None or self._due is None:
            if known:
                cursor.execute(LET_GO, {**words, "approved": False, "by": None})
            return None
        self._server = identity(cursor)
        restored = self._restored(row, claim.mark)
        if self._approved(row, claim):
            return None
        order = claim.order
        passes = (
            (order is not None and order.approved)
            or (known and self._over(row["now"] - row["braked_at"]))
            or (not known and claim.covered > 0 and not claim.failures and not restored)
        )
        if passes:
            by = order.requested_by if order is not None and order.approved else None
            cursor.execute(LET_GO, {**words, "approved": True, "by": by})
            return None
        hold = self._measure(cursor, self._limits, self._due, claim, known=known, restored=restored)
        if hold is not None:
            cursor.execute(HOLD, {**words, "reason": hold.why, "rows": None if hold.rows < 0 else hold.rows})
        elif known:
            cursor.execute(LET_GO, {**words, "approved": False, "by": None})
        return hold

    def settle(self, cursor: Cursor[dict[str, Any]], name: str, token: int, *, handed_over: bool) -> None:
        """Note at a run's end on which server it was, and that what was approved is done, unless some is left."""
        if self._limits is not None:
            words = {"name": name, "token": token, "server": self._server, "handed_over": handed_over}
            cursor.execute(SETTLE, words)

    def _restored(self, row: dict[str, Any], mark: Slot | None) -> bool:
        """Return whether the ledger is older than what has been seen, or on another server."""
        known: str | None = row["server"]
        other = self._server is not None and known is not None and self._server != known
        return other or (mark is not None and microseconds(row["known_until"]) < mark)

    def _approved(self, row: dict[str, Any], claim: Claiming) -> bool:
        """Return whether an earlier approval still holds; a new one takes its place."""
        if row["approved_at"] is None or (claim.order is not None and claim.order.approved):
            return False
        assert self._limits is not None
        age: timedelta = row["now"] - row["approved_at"]
        return timedelta(0) <= age < (self._limits.hold or USUAL_HOLD)

    def _over(self, age: timedelta) -> bool:
        assert self._limits is not None
        hold = self._limits.hold
        return hold is not None and hold - min(SLACK, hold / 10) <= age

    def _measure(  # noqa: PLR0913 - what a hold says
        self,
        cursor: Cursor[dict[str, Any]],
        limits: BrakeLimits,
        due: Due,
        claim: Claiming,
        *,
        known: bool,
        restored: bool,
    ) -> Hold | None:
        within = str(min(COUNT_WITHIN, int(claim.statement)))
        try:
            with cursor.connection.transaction():
                cursor.execute(LIMIT, {"statement": within, "seqscan": "on"})
                slots = 1 if restored or known or not claim.failures else 1 + claim.covered
                found = self._count(cursor, limits, due, claim.name, slots)
                cursor.execute(LIMIT, {"statement": claim.statement, "seqscan": "off"})
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
            return None  # an older api has not what is counted, and so nothing of it is due
        except psycopg.errors.InsufficientPrivilege:
            raise  # the run says which GRANT is missing
        except psycopg.DatabaseError as error:
            if cursor.connection.closed:
                raise
            # Held, since nobody knows what it would do: the worst that a hold does is that what is due waits.
            log.warning("rows that are due not counted", task=claim.name, **describe(error)._asdict())
            return Hold(Why.UNCOUNTED, -1, -1, -1, known, restored, limits)
        return None if found is None else Hold(*found, known, restored, limits)

    def _count(
        self, cursor: Cursor[dict[str, Any]], limits: BrakeLimits, due: Due, name: str, slots: int
    ) -> tuple[Why, int, int, int] | None:
        """Return why it is too much, how many rows are due at least, the limit, and what is usual; None if it is not.

        Nothing more is asked while few rows are due. `slots` are those that the run makes up for, itself included.
        """
        fewest = FEWEST_BY_USUAL if limits.share is None else FEWEST_BY_SHARE
        if due.at_most(cursor, fewest + 1) <= fewest:
            return None
        allowed: list[tuple[int, Why]] = []
        usual = -1
        if limits.times is not None:
            words = {"name": name, "size": self._size, "changed": self._size == ["changed"]}
            if (middle := only_row(cursor.execute(USUAL, words))["usual"]) is not None:
                usual = int(middle)
                allowed.append((max(FEWEST_BY_USUAL, int(limits.times * usual * slots)), Why.USUAL))
        if limits.share is not None and slots == 1 and (rows := _rows(cursor, due.table)) is not None:
            allowed.append((max(FEWEST_BY_SHARE, int(limits.share * rows)), Why.SHARE))
        if not allowed:
            return None
        limit, why = min(allowed)
        number = due.at_most(cursor, limit + 1)
        return (why, number, limit, usual) if number > limit else None


def _rows(cursor: Cursor[dict[str, Any]], table: LiteralString) -> int | None:
    """Return how many rows a table has: exactly if it is small, else by its statistics, None where there are none."""
    size = only_row(cursor.execute(TABLE_SIZE, {"table": table}))
    if (size["pages"] or 0) >= LARGE:
        return int(size["rows"]) if size["rows"] is not None else None
    query = sql.SQL("SELECT count(*) AS rows FROM {}").format(sql.Identifier(table))
    return int(only_row(cursor.execute(query))["rows"])
