"""What the ledger says of each sweeper: `sb-worker status`, and the demo's live view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from psycopg.rows import dict_row
from rich.table import Table

from app.core.values import format_duration
from app.sweeping.schedule import microseconds, moment, slot_at

if TYPE_CHECKING:
    from psycopg import Connection

# The last run of each sweeper, and what the ledger still holds of the earlier ones.
_RUNS = """
SELECT DISTINCT ON (name) name, slot, worker, started_at, finished_at, outcome, changed, batches, handed_over,
       error_class, sqlstate, now() AS now,
       sum(changed) OVER named AS total,
       count(*) FILTER (WHERE outcome = 'success') OVER named AS succeeded,
       count(*) FILTER (WHERE outcome = 'failure') OVER named AS failed,
       sum(covered) OVER named AS covered
  FROM secrets_bridge_worker.sweep_run
WINDOW named AS (PARTITION BY name)
 ORDER BY name, id DESC
"""
_NOW = "SELECT now() AS now"


@dataclass(frozen=True)
class SweeperStatus:
    """One sweeper as the ledger knows it; times aware, UTC. Without any run only name, cadence and next tick."""

    name: str
    interval: timedelta
    now: datetime
    next_tick: datetime
    last_run: datetime | None = None
    seconds: float | None = None
    lateness: float | None = None
    outcome: str = "never ran"
    changed: int = 0
    total: int = 0
    succeeded: int = 0
    failed: int = 0
    covered: int = 0
    handed_over: bool = False
    worker: str = ""
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        plain = asdict(self)
        plain["interval"] = format_duration(self.interval)
        return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in plain.items()}


def read(connection: Connection[Any], cadences: Sequence[tuple[str, timedelta]]) -> list[SweeperStatus]:
    """Read the ledger for these sweepers, in their order."""
    with connection.cursor(row_factory=dict_row) as cursor:
        runs = {row["name"]: row for row in cursor.execute(_RUNS)}
        now = (cursor.execute(_NOW).fetchone() or {})["now"]
    return [_status(name, interval, now, runs.get(name)) for name, interval in cadences]


def _status(name: str, interval: timedelta, now: datetime, run: dict[str, Any] | None) -> SweeperStatus:
    next_tick = moment(slot_at(microseconds(now), interval)) + interval
    if run is None:
        return SweeperStatus(name, interval, now, next_tick)
    finished = run["finished_at"]
    return SweeperStatus(
        name,
        interval,
        now,
        next_tick,
        last_run=run["started_at"],
        seconds=(finished - run["started_at"]).total_seconds() if finished else None,
        lateness=(run["started_at"] - run["slot"]).total_seconds(),
        outcome=run["outcome"],
        changed=run["changed"],
        total=int(run["total"]),
        succeeded=run["succeeded"],
        failed=run["failed"],
        covered=int(run["covered"]),
        handed_over=run["handed_over"],
        worker=run["worker"],
        error=" ".join(filter(None, (run["error_class"], run["sqlstate"]))),
    )


_STYLES = {"success": "green", "failure": "bold red", "interrupted": "yellow", "running": "cyan"}


def table(statuses: Sequence[SweeperStatus], title: str = "") -> Table:
    """Lay the sweepers out for a terminal."""
    shown = Table(title=title or None, expand=False, title_justify="left")
    for heading in (
        "sweeper",
        "every",
        "next",
        "last run",
        "outcome",
        "took",
        "late",
        "changed",
        "in all",
        "runs",
        "by",
    ):
        right = heading in ("next", "took", "late", "changed", "in all", "runs")
        shown.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for one in statuses:
        outcome = f"[{_STYLES.get(one.outcome, 'dim')}]{one.outcome}[/]" + (" (more left)" if one.handed_over else "")
        shown.add_row(
            one.name,
            format_duration(one.interval),
            f"{(one.next_tick - one.now).total_seconds():.0f}s",
            f"{(one.now - one.last_run).total_seconds():.0f}s ago" if one.last_run else "-",
            f"{outcome} {one.error}".strip(),
            f"{one.seconds * 1000:.0f}ms" if one.seconds is not None else "-",
            f"{one.lateness * 1000:.0f}ms" if one.lateness is not None else "-",
            f"{one.changed:,}",
            f"{one.total:,}",
            f"{one.succeeded:,}",
            one.worker.rpartition(":")[2] and f"pid {one.worker.rpartition(':')[2]}",
        )
    return shown
