"""How far the sweeps of the whole fleet are behind: a gauge, and one line when a sweeper is not run by anybody.

Of no matter to readiness: among many replicas a healthy one may see no tick for long. The ledger knows of all of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

import psycopg
import structlog
from prometheus_client.core import GaugeMetricFamily
from psycopg.rows import tuple_row
from psycopg_pool import PoolTimeout

from app.sweeping.steering import pauses

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg_pool import ConnectionPool

log = structlog.get_logger("scheduler")

#: Seconds between two looks at the ledger.
LOOK_SECONDS = 3.0
#: So many intervals without a run are worth a line.
TOLD_AFTER = 3

# A failed run gives its slot back, so the newest slot is one that was run. What has no table rests, and is never late;
# nor is what is paused, or was until a moment ago. What a brake holds is late, and told by its event.
_READ: LiteralString = f"""
SELECT cadence.name,
       extract(epoch FROM clock_timestamp() - CASE WHEN paused.now THEN clock_timestamp()
                                                   ELSE greatest(nullif(state.last_slot, 'epoch'), paused.until) END
       )::float8 AS age, state.braked_for IS NOT NULL AS braked
  FROM unnest(%(names)s::text[], %(relations)s::text[]) AS cadence (name, relation)
  LEFT JOIN secrets_bridge_worker.sweep_state AS state USING (name)
 CROSS JOIN LATERAL (
       SELECT coalesce(bool_or({pauses.HOLDS}), false) AS now,
              max(coalesce(resumed_at, until)) FILTER (WHERE coalesce(resumed_at, until) <= now()) AS until
         FROM secrets_bridge_worker.sweeper_pause WHERE sweeper_pause.name = cadence.name) AS paused
 WHERE EXISTS (SELECT FROM pg_attribute
                WHERE attrelid = to_regclass(split_part(cadence.relation, '.', 1)) AND NOT attisdropped
                  AND split_part(cadence.relation, '.', 2) IN ('', attname))
"""  # noqa: S608 - all its parts are literals


class Watched(NamedTuple):
    """A sweeper, the table or `table.column` without which it rests, and how often it is to run."""

    name: str
    relation: str
    interval: timedelta


class Overdue:
    """Watches the ledger. As a Prometheus collector it shows what was seen, and the time that has passed since."""

    def __init__(self, pool: ConnectionPool[Connection[Any]], cadences: Sequence[Watched]) -> None:
        self._pool = pool
        self._cadences = list(cadences)
        self._began = time.monotonic()
        #: When the next run of each sweeper that does not rest was or is due, monotonic seconds.
        self._due: dict[str, float] = {}
        self._told: set[str] = set()
        #: Whose runs a brake holds.
        self._braked: set[str] = set()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges; the first goes on rising while PostgreSQL is away, since nothing runs without it."""
        family = GaugeMetricFamily(
            "worker_sweep_overdue_seconds",
            "How far the newest run of any replica is behind what the cadence asks.",
            labels=["task"],
        )
        for cadence in self._cadences:
            family.add_metric([cadence.name], self._behind(cadence))
        yield family
        family = GaugeMetricFamily(
            "worker_sweep_braked", "1 while the sweeper's brake holds its runs, in every replica.", labels=["task"]
        )
        for cadence in self._cadences:
            family.add_metric([cadence.name], float(cadence.name in self._braked))
        yield family

    def watch(self) -> None:
        """Look at the ledger every few seconds, for ever."""
        while True:
            self.look()
            time.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """Read the ledger, and tell who is overdue and who runs again; nothing while PostgreSQL is away."""
        try:
            read = self._read()
        except (psycopg.Error, PoolTimeout):
            return
        now, ages = time.monotonic(), {name: age for name, (age, _) in read.items()}
        self._braked = {name for name, (_, braked) in read.items() if braked}
        self._due = {
            cadence.name: (self._began if (age := ages[cadence.name]) is None else now - age)
            + cadence.interval.total_seconds()
            for cadence in self._cadences
            if cadence.name in ages
        }
        for cadence in self._cadences:
            self._tell(cadence)

    def _read(self) -> dict[str, tuple[float | None, bool]]:
        """Return for each sweeper that does not rest the age of its newest slot, and whether a brake holds it.

        Ages are in seconds, None for no run ever; what is paused has just been run, and what was has been run then.
        """
        parameters = {
            "names": [cadence.name for cadence in self._cadences],
            "relations": [cadence.relation for cadence in self._cadences],
        }
        with self._pool.connection(timeout=1.0) as connection, connection.transaction():
            cursor = connection.cursor(row_factory=tuple_row)
            cursor.execute("SET LOCAL statement_timeout = '1s'")
            return {name: (age, braked) for name, age, braked in cursor.execute(_READ, parameters)}

    def _behind(self, cadence: Watched) -> float:
        now = time.monotonic()
        return max(0.0, now - self._due.get(cadence.name, now))

    def _tell(self, cadence: Watched) -> None:
        behind, told = timedelta(seconds=self._behind(cadence)), cadence.name in self._told
        if behind > cadence.interval * TOLD_AFTER and not told and cadence.name not in self._braked:
            self._told.add(cadence.name)
            log.warning("sweep overdue in every replica; is a scheduler running?", task=cadence.name, overdue=behind)
        elif behind < cadence.interval and told:
            self._told.remove(cadence.name)
            log.info("sweep runs again", task=cadence.name)
