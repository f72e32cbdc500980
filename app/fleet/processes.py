"""The processes of a deployment, as their signs of life tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString

from app.core.role import SINK_QUEUE, SWEEP_QUEUE, Kind
from app.fleet.signs_of_life import GONE_AFTER
from app.storage.bounded_values import LONGEST
from app.storage.postgres import only_row

if TYPE_CHECKING:
    from psycopg import Cursor

# What was seen in the future was so while the clock was ahead: one that lives is seen again within seconds.
_READ: LiteralString = """
SELECT kind, queues, deployment, host, pid, version, started_at, seen_at, ended_at, draining, clock_ahead, cadences,
       off, ticked_at, ended_at IS NULL AND seen_at > clock_timestamp() - %(gone_after)s AS alive
  FROM secrets_bridge_worker.process
 WHERE seen_at > clock_timestamp() - %(seen_within)s AND seen_at <= clock_timestamp() + %(gone_after)s
 ORDER BY kind, host, pid, started_at
"""

_LAST_TICK: LiteralString = """
SELECT max(least(ticked_at, clock_timestamp())) AS ticked_at FROM secrets_bridge_worker.process
 WHERE seen_at <= clock_timestamp() + %(gone_after)s AND ticked_at <= clock_timestamp() + %(gone_after)s
"""


@dataclass(frozen=True)
class Process:
    """One process; times aware, by the database's clock."""

    kind: str
    queues: Sequence[str]
    deployment: str
    host: str
    pid: int
    version: str
    started_at: datetime
    seen_at: datetime
    #: When it said that it ends; None for one that lives, or was killed.
    ended_at: datetime | None
    draining: bool
    #: How far its machine's clock is ahead of the database's.
    clock_ahead: timedelta
    #: How often it means to run which sweeper, and those that are off there, by the variable that switches them on.
    cadences: Mapping[str, timedelta]
    off: Mapping[str, str]
    #: When it last sent a tick, if it is a scheduler.
    ticked_at: datetime | None
    alive: bool

    @property
    def sweeps(self) -> bool:
        """Whether it runs sweepers."""
        return SWEEP_QUEUE in self.queues

    @property
    def notifies(self) -> bool:
        """Whether it delivers notifications."""
        return SINK_QUEUE in self.queues

    @property
    def schedules(self) -> bool:
        """Whether it sends ticks."""
        return self.kind == Kind.SCHEDULER.value


def read(cursor: Cursor[dict[str, Any]], seen_within: timedelta) -> list[Process]:
    """Return the processes that gave a sign of life within so long, alive or not."""
    rows = cursor.execute(_READ, {"gone_after": GONE_AFTER, "seen_within": seen_within}).fetchall()
    for row in rows:
        row |= {"cadences": _cadences(row["cadences"]), "off": _off(row["off"])}
    return [Process(**row) for row in rows]


def last_tick(cursor: Cursor[dict[str, Any]]) -> datetime | None:
    """Return when any scheduler that is known last sent a tick."""
    found: datetime | None = only_row(cursor.execute(_LAST_TICK, {"gone_after": GONE_AFTER}))["ticked_at"]
    return found


def _cadences(said: object) -> dict[str, timedelta]:
    """Return what can be read of it: another release, or a hand, may have written anything."""
    found = {}
    for name, number in said.items() if isinstance(said, dict) else ():
        with suppress(TypeError, ValueError, OverflowError):
            if timedelta(0) < (interval := timedelta(seconds=number)) <= LONGEST:
                found[name] = interval
    return found


def _off(said: object) -> dict[str, str]:
    return {name: by for name, by in said.items() if isinstance(by, str)} if isinstance(said, dict) else {}
