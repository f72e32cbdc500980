"""Where each sweeper stands by PostgreSQL: the newest slot that was run, failures, pauses, the brake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from app.overview.model import RunPoint, State
from app.sweeping.scans.tables import is_there
from app.sweeping.steering.pauses import AHEAD, HOLDS

if TYPE_CHECKING:
    from psycopg import Cursor

    from app.fleet.processes import Process

#: Runs of each sweeper that are shown.
RUNS = 60

# A failed run gives its slot back, so the newest slot is one that was run. Each part finds its rows by an index,
# however long the ledger is; the newest success by the one that allows one a slot. What an older api lacks rests.
# A time that lies ahead was written while the clock was: as far as it goes nothing would ever be owed.
_READ: LiteralString = f"""
SELECT asked.name, clock_timestamp() AS now,{is_there("asked.relation")} AS present,
       nullif(state.last_slot, 'epoch') AS last_slot, coalesce(state.failures, 0) AS failures, state.failing_since,
       state.braked_for, state.braked_at, state.braked_rows,
       CASE WHEN state.approved_at <= now() + interval '1 min' THEN least(state.approved_at, clock_timestamp())
        END AS approved_at,
       pause.began_at AS paused_at, pause.until AS paused_until, pause.paused_by, pause.reason AS paused_for,
       (SELECT max(least(until, resumed_at, clock_timestamp())) FROM secrets_bridge_worker.sweeper_pause AS ended
         WHERE ended.name = asked.name AND (resumed_at IS NOT NULL OR until <= clock_timestamp())
           AND NOT {AHEAD} AND least(until, resumed_at) <= now() + interval '1 min') AS resumed_at,
       (SELECT started_at FROM secrets_bridge_worker.sweep_run AS run
         WHERE run.name = asked.name AND outcome = 'success'
         ORDER BY slot DESC LIMIT 1) AS last_success
  FROM unnest(%(names)s::text[], %(relations)s::text[]) AS asked (name, relation)
  LEFT JOIN secrets_bridge_worker.sweep_state AS state USING (name)
  LEFT JOIN LATERAL (
       SELECT began_at, until, paused_by, reason FROM secrets_bridge_worker.sweeper_pause
        WHERE name = asked.name AND {HOLDS}
        ORDER BY until DESC LIMIT 1) AS pause ON true
"""  # noqa: S608 - all its parts are literals
_RUNS: LiteralString = """
SELECT asked.name, run.*
  FROM unnest(%(names)s::text[]) AS asked (name)
 CROSS JOIN LATERAL (
       SELECT slot, started_at, finished_at, outcome, changed, worker, covered, handed_over,
              error_class, sqlstate, requested_by
         FROM secrets_bridge_worker.sweep_run WHERE name = asked.name
        ORDER BY started_at DESC LIMIT %(most)s) AS run
 ORDER BY asked.name, run.started_at
"""


class Watched(NamedTuple):
    """A sweeper, the table or `table.column` without which it rests, and how often it is to run."""

    name: str
    relation: str
    interval: timedelta


@dataclass(frozen=True)
class Standing:
    """What PostgreSQL knows of one sweeper but its runs; times aware, by its clock."""

    name: str
    now: datetime
    #: Whether the api's table is there.
    present: bool
    last_slot: datetime | None
    last_success: datetime | None
    failures: int
    failing_since: datetime | None
    braked_for: str | None
    braked_at: datetime | None
    braked_rows: int | None
    approved_at: datetime | None
    paused_at: datetime | None
    paused_until: datetime | None
    paused_by: str | None
    paused_for: str | None
    #: When its last pause ended.
    resumed_at: datetime | None

    @property
    def state(self) -> State:
        """Whether it is to run, as far as PostgreSQL knows."""
        if not self.present:
            return State.RESTING
        if self.paused_at is not None:
            return State.PAUSED
        return State.BRAKED if self.braked_for is not None else State.ON

    def owed_since(self, interval: timedelta, began: datetime | None) -> datetime | None:
        """Return since when a run is owed, or will be; None while it is not to run.

        One that never ran owes its first run an interval after `began`, when somebody began to be there for it.
        """
        if self.state is not State.ON:
            return None
        from_then_on = [moment for moment in (self.resumed_at, self.approved_at) if moment is not None]
        last = self.last_slot or began
        return None if last is None else max([last, *from_then_on]) + interval


def grace(interval: timedelta) -> timedelta:
    """Return how long a run may be owed before anybody need know: it may wait for a tick, a lock, a retry."""
    return max(timedelta(seconds=1), min(interval / 2, timedelta(seconds=10)))


def read(cursor: Cursor[dict[str, Any]], watched: Sequence[Watched]) -> dict[str, Standing]:
    """Return where these sweepers stand, by name."""
    words = {"names": [one.name for one in watched], "relations": [one.relation for one in watched]}
    return {row["name"]: Standing(**row) for row in cursor.execute(_READ, words)}


def read_runs(cursor: Cursor[dict[str, Any]], names: Sequence[str]) -> dict[str, tuple[RunPoint, ...]]:
    """Return the newest runs of each sweeper, the oldest first."""
    found: dict[str, list[RunPoint]] = {}
    for row in cursor.execute(_RUNS, {"names": list(names), "most": RUNS}):
        found.setdefault(row["name"], []).append(_run(row))
    return {name: tuple(runs) for name, runs in found.items()}


def _run(row: Mapping[str, Any]) -> RunPoint:
    finished = row["finished_at"]
    return RunPoint(
        row["slot"],
        row["started_at"],
        row["outcome"],
        lateness=max(0.0, (row["started_at"] - row["slot"]).total_seconds()),
        changed=row["changed"],
        seconds=(finished - row["started_at"]).total_seconds() if finished else None,
        worker=row["worker"],
        covered=row["covered"],
        handed_over=row["handed_over"],
        error=" ".join(filter(None, (row["error_class"], row["sqlstate"]))),
        requested_by=row["requested_by"] or "",
    )


def cadence(name: str, processes: Sequence[Process], own: timedelta) -> timedelta:
    """Return how often a sweeper is run: the longest that any living process says, else what our settings say.

    While they disagree nothing is called overdue that is not so by all of them.
    """
    return max(
        (process.cadences[name] for process in processes if process.alive and name in process.cadences), default=own
    )
