"""The demo's live view of each sweeper, with all that the ledger has of it: it is small and new here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from psycopg.rows import dict_row
from rich.table import Table
from rich.text import Text

from app.cli.columns import GAP, fitting
from app.core.values import format_duration
from app.sweeping.schedule import microseconds, moment, slot_at

if TYPE_CHECKING:
    from psycopg import Connection

# The last run of each sweeper, and what the ledger still holds of the earlier ones.
_RUNS = """
SELECT last.name, slot, worker, started_at, finished_at, outcome, changed, batches, handed_over,
       error_class, sqlstate, now() AS now, total, succeeded, failed, ledger.covered
  FROM (SELECT max(id) AS id, sum(changed) AS total, sum(covered) AS covered,
               count(*) FILTER (WHERE outcome = 'success') AS succeeded,
               count(*) FILTER (WHERE outcome = 'failure') AS failed
          FROM secrets_bridge_worker.sweep_run GROUP BY name) AS ledger
  JOIN secrets_bridge_worker.sweep_run AS last USING (id)
"""
_NOW = "SELECT now() AS now"


@dataclass(frozen=True)
class SweeperStatus:
    """One sweeper in the ledger; times aware, UTC, `seconds` and `lateness` in seconds.

    Without a run only the name, the interval, now and the next tick are known.
    """

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
        """Return the values in JSON's types."""
        plain = asdict(self)
        plain["interval"] = format_duration(self.interval)
        return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in plain.items()}


def read(connection: Connection[Any], cadences: Sequence[tuple[str, timedelta]]) -> list[SweeperStatus]:
    """Return the state of these sweepers, named with their intervals, in their order."""
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
_CELLS: dict[str, Callable[[SweeperStatus], str]] = {
    "sweeper": lambda status: status.name,
    "every": lambda status: format_duration(status.interval),
    "next": lambda status: f"{(status.next_tick - status.now).total_seconds():.0f}s",
    "last run": lambda status: f"{(status.now - status.last_run).total_seconds():.0f}s ago" if status.last_run else "-",
    "outcome": lambda status: f"{status.outcome}{', more' * status.handed_over} {status.error}".strip(),
    "took": lambda status: f"{status.seconds * 1000:.0f}ms" if status.seconds is not None else "-",
    "late": lambda status: f"{status.lateness * 1000:.0f}ms" if status.lateness is not None else "-",
    "changed": lambda status: f"{status.changed:,}",
    "in all": lambda status: f"{status.total:,}",
    "runs": lambda status: f"{status.succeeded:,}",
    "by": lambda status: f"pid {status.worker.rpartition(':')[2]}" if status.worker else "",
}
_LEFT_ALIGNED = ("sweeper", "every", "outcome", "by")
#: What is left out first on a narrow terminal; an outcome is only cut.
_EXPENDABLE = ("by", "runs", "in all", "took", "changed", "late", "outcome", "every", "last run", "next")
#: Characters that are reserved for growing values: without them headings would come and go.
_RESERVED = {"last run": 8, "outcome": len("success, more"), "took": 6, "late": 6, "in all": 7, "runs": 5}


def table(statuses: Sequence[SweeperStatus], width: int, height: int | None = None) -> Table:
    """Return a table that is at most `width` columns wide and `height` lines high.

    What does not fit is left out: the least important columns, then sweepers whose last run succeeded, in place of
    which a line has their number.
    """
    cells = {heading: [cell(status) for status in statuses] for heading, cell in _CELLS.items()}
    widths = {
        heading: max(len(heading), _RESERVED.get(heading, 0), *map(len, column)) for heading, column in cells.items()
    }
    widths = fitting(widths, width, expendable=_EXPENDABLE, cut="outcome", least=_RESERVED["outcome"])
    shown = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
    for heading, size in widths.items():
        shown.add_column(heading, width=size, no_wrap=True, justify="left" if heading in _LEFT_ALIGNED else "right")
    rows = range(len(statuses))
    if height is not None and len(rows) >= height:
        kept = sorted(rows, key=lambda row: statuses[row].outcome == "success")[: max(0, height - 2)]
    else:
        kept = list(rows)
    for row in sorted(kept):
        style = _STYLES.get(statuses[row].outcome, "dim")
        shown.add_row(*(Text(cells[heading][row], style if heading == "outcome" else "") for heading in widths))
    if len(kept) < len(rows):
        shown.add_row(f"+{len(rows) - len(kept)} more", style="dim")
    return shown
