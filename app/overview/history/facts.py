"""All that is known of one slot of one sweeper, read and not yet judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from app.fleet.processes import Process
from app.overview.history.cadences import Cadences
from app.overview.history.entry import COLUMNS, Entry
from app.storage.postgres import only_row
from app.sweeping.scans.tables import is_there
from app.sweeping.steering import brake
from app.sweeping.unlocking import Held

if TYPE_CHECKING:
    from psycopg import Cursor

#: Attempts of one slot that are read at most, and runs before it that may have reached into it.
_MOST, _RUNS_BEFORE = 200, 20

# Attempts of a slot begin within half an interval before it and one after its end.
_ATTEMPTS: LiteralString = f"""
SELECT {COLUMNS} FROM secrets_bridge_worker.sweep_run
 WHERE name = %(name)s AND started_at >= %(slot)s - %(interval)s AND started_at < %(end)s + %(interval)s
   AND slot >= %(slot)s AND slot < %(end)s
 ORDER BY id LIMIT %(most)s
"""  # noqa: S608 - a literal
_BEFORE: LiteralString = f"""
SELECT {COLUMNS} FROM secrets_bridge_worker.sweep_run
 WHERE name = %(name)s AND started_at < %(end)s AND slot < %(slot)s AND token IS NOT NULL
 ORDER BY started_at DESC LIMIT %(most)s
"""  # noqa: S608 - a literal
_LATER: LiteralString = f"""
SELECT {COLUMNS} FROM secrets_bridge_worker.sweep_run
 WHERE name = %(name)s AND slot >= %(end)s AND outcome = 'success' ORDER BY slot LIMIT 1
"""  # noqa: S608 - a literal
_EARLIER: LiteralString = f"""
SELECT {COLUMNS} FROM secrets_bridge_worker.sweep_run
 WHERE name = %(name)s AND slot < %(slot)s AND outcome = 'success' ORDER BY slot DESC LIMIT 1
"""  # noqa: S608 - a literal
_FIRST: LiteralString = """
SELECT started_at, slot FROM secrets_bridge_worker.sweep_run WHERE name = %(name)s ORDER BY started_at LIMIT 1
"""
_STATE: LiteralString = """
SELECT token, coalesce(braked_at, 'epoch') AS braked_at, braked_for, braked_rows
  FROM secrets_bridge_worker.sweep_state WHERE name = %(name)s
"""
_PAUSES: LiteralString = """
SELECT began_at AS since, least(until, resumed_at) AS until, paused_by AS by, reason
  FROM secrets_bridge_worker.sweeper_pause
 WHERE name = %(name)s AND began_at < %(end)s AND least(until, resumed_at) > %(slot)s ORDER BY began_at LIMIT 5
"""
_OBSTACLES: LiteralString = """
SELECT kind, began_at AS since, seen_at AS until FROM secrets_bridge_worker.sweep_obstacle
 WHERE name = %(name)s AND began_at < %(end)s AND seen_at >= %(slot)s ORDER BY began_at LIMIT 5
"""
_THERE: LiteralString = f"SELECT {is_there('%(relation)s')} AS there"


class PauseMade(NamedTuple):
    """A pause that somebody has made."""

    since: datetime
    until: datetime
    by: str
    reason: str


class Obstacle(NamedTuple):
    """What was seen to keep an overdue sweeper from its runs, as a word of a closed set."""

    kind: str
    since: datetime
    until: datetime


class Asked(NamedTuple):
    """What is asked, and what settings and Redis say of it."""

    name: str
    slot: datetime
    interval: timedelta
    now: datetime
    #: The variable that switches it on, where it is off by this command's settings.
    off: str | None
    #: The table, or `table.column`, without which it rests, and all tables that a run touches.
    relation: str
    tables: Sequence[str]
    retention: timedelta
    lease: timedelta
    #: Whether Redis has answered, and the sweeper's lock if it is held.
    redis: bool
    lock: Held | None

    @property
    def end(self) -> datetime:
        """When the slot ends."""
        return self.slot + self.interval


@dataclass(frozen=True)
class Facts:
    """All of it; times aware."""

    asked: Asked
    cadences: Cadences
    processes: Sequence[Process]
    #: What was tried for the slot, oldest first.
    attempts: Sequence[Entry]
    #: Runs of older slots that reached into this one.
    overlapping: Sequence[Entry]
    #: The first run of a newer slot that succeeded, and the last one of an older slot.
    later: Entry | None
    earlier: Entry | None
    #: When the oldest run that the ledger has began.
    first: datetime | None
    token: int
    brake: brake.Held | None
    pauses: Sequence[PauseMade]
    obstacles: Sequence[Obstacle]
    table_there: bool


def read(cursor: Cursor[dict[str, Any]], asked: Asked, cadences: Cadences, processes: Sequence[Process]) -> Facts:
    """Read what is known of a slot."""
    words = {"name": asked.name, "slot": asked.slot, "end": asked.end, "interval": asked.interval}
    attempts = [Entry(**row) for row in cursor.execute(_ATTEMPTS, {**words, "most": _MOST})]
    before = [Entry(**row) for row in cursor.execute(_BEFORE, {**words, "most": _RUNS_BEFORE})]
    later = cursor.execute(_LATER, words).fetchone()
    earlier = cursor.execute(_EARLIER, words).fetchone()
    first = cursor.execute(_FIRST, words).fetchone()
    state = cursor.execute(_STATE, words).fetchone() or {"token": 0, "braked_for": None}
    return Facts(
        asked,
        cadences,
        processes,
        attempts,
        [row for row in before if row.finished_at is None or row.finished_at > asked.slot],
        Entry(**later) if later else None,
        Entry(**earlier) if earlier else None,
        first["started_at"] if first else None,
        state["token"],
        brake.Held(state["braked_for"], state["braked_at"], state["braked_rows"]) if state["braked_for"] else None,
        [PauseMade(**row) for row in cursor.execute(_PAUSES, words)],
        [Obstacle(**row) for row in cursor.execute(_OBSTACLES, words)],
        only_row(cursor.execute(_THERE, {"relation": asked.relation}))["there"],
    )
