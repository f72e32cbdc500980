"""Watches the whole deployment from one process: what its gauges show, a line for a sweeper that nobody runs, and why.

Of no matter to readiness: among many replicas a healthy one may see no tick for long. PostgreSQL knows of all of them.
Each replica looks by itself, so that any of them can be asked; so a look is cheap: two statements, a third one now and
then, and Redis only while something is overdue.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import structlog
from psycopg_pool import PoolTimeout

from app.fleet import processes
from app.fleet.signs_of_life import GONE_AFTER
from app.overview.model import State
from app.overview.problems import fleet
from app.overview.sources import backlogs, blockers, locks, obstacles, standings
from app.overview.sources.locks import Lock, Locks
from app.overview.sources.obstacles import Obstacle
from app.overview.sources.parts import limited
from app.overview.sources.standings import Standing, Watched, cadence, grace
from app.sweeping.scans.due import Backlog
from app.sweeping.unserved import Pair

if TYPE_CHECKING:
    import redis
    from psycopg import Connection, Cursor
    from psycopg_pool import ConnectionPool

    from app.fleet.processes import Process

log = structlog.get_logger("scheduler")

#: Seconds between two looks; every so many of them the processes are looked at, and what is due is counted.
LOOK_SECONDS, PROCESSES_EVERY, BACKLOGS_EVERY = 3.0, 2, 20
#: What counting one backlog may take, and all of them together.
EACH_BACKLOG, BACKLOGS = timedelta(milliseconds=250), timedelta(seconds=2)
#: So many intervals without a run are worth a line.
TOLD_AFTER = 3
_WORDS = {
    Obstacle.NO_SCHEDULER: "no scheduler is alive",
    Obstacle.NO_TICKS: "schedulers live, and send no ticks",
    Obstacle.REDIS_AWAY: "Redis is away or takes no writes",
    Obstacle.FOREIGN_LOCK: "somebody who is no run of ours holds its lock; `sb-worker unlock` frees it",
    Obstacle.TABLE_LOCKED: "somebody holds its table; `sb-worker status` says who",
}
_UNKNOWN = "not known; `sb-worker status` says more"
_RUNNING: LiteralString = """
SELECT name FROM secrets_bridge_worker.sweep_run WHERE outcome = 'running' AND name = ANY (%(names)s)
"""


@dataclass
class Seen:
    """What was seen last; moments that grow are kept by the monotonic clock, seconds."""

    at: float = -math.inf
    standings: Mapping[str, Standing] = field(default_factory=dict)
    fleet: Sequence[Process] = ()
    ticked_at: float = -math.inf
    #: With when they were counted, by the database's clock.
    backlogs: Mapping[str, Backlog] = field(default_factory=dict)
    counted_at: datetime | None = None
    #: When the next run of each sweeper that is to run was or is due.
    due: Mapping[str, float] = field(default_factory=dict)
    #: Since when a stranger holds the lock of an overdue sweeper.
    foreign: Mapping[str, float] = field(default_factory=dict)


class FleetWatch:
    """Looks at the deployment every few seconds."""

    def __init__(  # noqa: PLR0913 - what it looks at
        self,
        pool: ConnectionPool[Connection[Any]],
        client: redis.Redis,
        watched: Sequence[Watched],
        counted: Sequence[Pair] = (),
        *,
        namespace: str,
        retention: timedelta,
    ) -> None:
        """`retention` is how long obstacles are kept; `namespace` the prefix of the lock keys."""
        self.watched = list(watched)
        self.seen = Seen()
        self._pool = pool
        self._client = client
        self._counted = list(counted)
        self._namespace = namespace
        self._retention = retention
        self._began = time.monotonic()
        self._looks = 0
        self._held: Mapping[str, Lock] = {}
        self._told: set[str] = set()
        self._failed = False

    def watch(self) -> None:
        """Look at the deployment, for ever."""
        while True:
            self.look()
            time.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """Look, write down what keeps overdue sweepers from their runs, and tell of them; without PostgreSQL nothing.

        Whatever fails leaves what was seen before, which grows older.
        """
        try:
            with self._pool.connection(timeout=1.0) as connection:
                self._look(connection)
        except (psycopg.Error, PoolTimeout):
            return
        except Exception as error:  # noqa: BLE001 - this thread's end would be the process's, and that of its runs
            if not self._failed:
                log.error("deployment not looked at; its gauges grow old", error=type(error).__name__)
            self._failed = True
            return
        self._failed = False
        self._looks += 1

    def behind(self, name: str) -> float:
        """Return for how long a run of a sweeper has been owed, seconds; it goes on rising without PostgreSQL."""
        now = time.monotonic()
        return max(0.0, now - self.seen.due.get(name, now))

    def _look(self, connection: Connection[Any]) -> None:
        seen = self.seen
        with limited(connection) as cursor:
            seen.standings = standings.read(cursor, self.watched)
            if self._looks % PROCESSES_EVERY == 0:
                self._read_fleet(cursor)
        now = time.monotonic()
        seen.due = {one.name: due for one in self.watched if (due := self._due(one, now)) is not None}
        overdue = [one.name for one in self.watched if self._is_overdue(one)]
        owing = [name for name in overdue if not seen.standings[name].failures]  # else the ledger says why
        before, looked = self._held, locks.read(self._client, self._namespace, owing) if owing else None
        self._held = looked.held if looked else {}
        found: dict[str, Obstacle] = {}
        seen.foreign = {}
        if looked is not None:
            with limited(connection) as cursor:
                found = self._obstacles(cursor, owing, looked, before)
                seen.foreign = self._write_down(cursor, found, now)
        seen.at = time.monotonic()
        for one in self.watched:
            self._tell(one, found.get(one.name))
        if self._looks % BACKLOGS_EVERY == 0:
            self._count(connection)

    def _read_fleet(self, cursor: Cursor[dict[str, Any]]) -> None:
        self.seen.fleet = [one for one in processes.read(cursor, GONE_AFTER * 2) if one.alive]
        ticked_at, now = processes.last_tick(cursor), self._now()
        if ticked_at is not None and now is not None:
            self.seen.ticked_at = time.monotonic() - (now - ticked_at).total_seconds()

    def _now(self) -> datetime | None:
        return next((standing.now for standing in self.seen.standings.values()), None)

    def _count(self, connection: Connection[Any]) -> None:
        """Count what is due of sweepers whose table is there."""
        present = [pair for pair in self._counted if (one := self.seen.standings.get(pair[0].name)) and one.present]
        self.seen.backlogs = backlogs.read(connection, present, EACH_BACKLOG, BACKLOGS)
        self.seen.counted_at = self._now()

    def _due(self, watched: Watched, now: float) -> float | None:
        """Return when the next run of a sweeper was or is due; None while it is not to run."""
        standing, interval = (
            self.seen.standings.get(watched.name),
            cadence(watched.name, self.seen.fleet, watched.interval),
        )
        if standing is None:
            return None
        owed = standing.owed_since(interval, standing.now - timedelta(seconds=now - self._began))
        return None if owed is None else now - (standing.now - owed).total_seconds()

    def _is_overdue(self, watched: Watched) -> bool:
        return timedelta(seconds=self.behind(watched.name)) > grace(watched.interval)

    def _obstacles(
        self, cursor: Cursor[dict[str, Any]], owing: Sequence[str], looked: Locks, before: Mapping[str, Lock]
    ) -> dict[str, Obstacle]:
        """Return what keeps these sweepers from their runs, as far as it can be seen."""
        self._read_fleet(cursor)
        if looked.server.problem:
            return dict.fromkeys(owing, Obstacle.REDIS_AWAY)
        running = {row["name"] for row in cursor.execute(_RUNNING, {"names": owing})}
        # The same holder at two looks: a run that is about to begin is in the ledger by the second one.
        foreign = {
            name: Obstacle.FOREIGN_LOCK
            for name, lock in looked.held.items()
            if name not in running and name in before and before[name].token == lock.token
        }
        general = self._general()
        return {name: general for name in owing if general} | self._locked_out(cursor, owing) | foreign

    def _locked_out(self, cursor: Cursor[dict[str, Any]], owing: Sequence[str]) -> dict[str, Obstacle]:
        """Return which of these sweepers somebody keeps from their table."""
        tables = {one.name: one.relation.partition(".")[0] for one in self.watched if one.name in owing}
        held = {blocker.table for blocker in blockers.read(cursor, sorted(set(tables.values())))}
        return {name: Obstacle.TABLE_LOCKED for name, table in tables.items() if table in held}

    def _general(self) -> Obstacle | None:
        """Return what keeps ticks from being sent to anybody."""
        schedulers = [one for one in self.seen.fleet if one.schedules]
        if not schedulers:
            return Obstacle.NO_SCHEDULER
        patience, now = fleet.silence(schedulers), self._now()
        last = max(one.ticked_at or one.started_at for one in schedulers)  # one that has just begun will send one soon
        return Obstacle.NO_TICKS if patience and now and now - last > patience else None

    def _write_down(
        self, cursor: Cursor[dict[str, Any]], found: Mapping[str, Obstacle], now: float
    ) -> dict[str, float]:
        """Write the obstacles down, and return since when strangers hold which locks."""
        obstacles.see(cursor, found, self._retention)
        names, at = [name for name, kind in found.items() if kind is Obstacle.FOREIGN_LOCK], self._now()
        if not names or at is None:
            return {}
        current = obstacles.current(cursor, names)
        since = {name: current.get((name, Obstacle.FOREIGN_LOCK), at) for name in names}
        return {name: now - (at - moment).total_seconds() for name, moment in since.items()}

    def _tell(self, watched: Watched, obstacle: Obstacle | None) -> None:
        behind, told = timedelta(seconds=self.behind(watched.name)), watched.name in self._told
        standing = self.seen.standings.get(watched.name)
        if behind > watched.interval * TOLD_AFTER and not told:
            self._told.add(watched.name)
            why = _WORDS[obstacle] if obstacle else _UNKNOWN
            why = "its runs fail" if standing is not None and standing.failures else why
            log.warning("sweep overdue in every replica", task=watched.name, overdue=behind, why=why)
        elif behind < watched.interval and told:
            self._told.remove(watched.name)
            if standing is not None and standing.state is State.ON:
                log.info("sweep runs again", task=watched.name)
