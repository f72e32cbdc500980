"""`sb-worker runs`: the ledger, a line a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from app.cli.columns import GAP, fitting
from app.cli.help import examples
from app.cli.history.past import output_option, past, since_option
from app.cli.names import SWEEPER
from app.cli.terminal import Terminal
from app.overview.history.entry import Entry
from app.overview.history.recent import recent
from app.overview.history.transaction import looking_back
from app.overview.history.wording import length, typed

_STYLES = {"success": "green", "failure": "bold red", "interrupted": "yellow", "running": "cyan"}
_RIGHT = ("late", "took", "changed")
#: What is left out first where there is no room; an outcome is only cut, before all else, down to so many characters.
_EXPENDABLE = ("outcome", "by", "counts", "took", "late", "changed")
_LEAST_OUTCOME = 20
#: Characters of a line that nobody cuts.
_WIDEST = 10_000


@click.command(
    "runs",
    short_help="List runs from the ledger, the newest first.",
    epilog=examples(
        "sb-worker runs                           the newest 30",
        "sb-worker runs wraps-expired --since 1h",
        "sb-worker runs --failed --since 24h      what went wrong since yesterday",
        "sb-worker runs -o json --limit 1000 | jq 'select(.late_seconds > 1)'",
    ),
)
@click.argument("sweeper", type=SWEEPER, required=False, metavar="[SWEEPER]")
@click.option("--failed", is_flag=True, help="Only those that failed or were interrupted.")
@since_option(None)
@click.option("--limit", type=click.IntRange(1, 100_000), default=30, show_default=True, help="How many at most.")
@output_option("table", "wide")
def runs(sweeper: str | None, failed: bool, window: timedelta | None, limit: int, form: str) -> None:
    """List runs from the ledger, the newest first: slot, lateness, duration, what was changed, how it ended.

    Of all sweepers, or of SWEEPER. Times are UTC, by the database's clock. `late` is from the slot to the start of the
    run. A table leaves columns out where there is no room; `wide` and `json` have all of them.
    """
    with past() as (_, connection), looking_back(connection) as cursor:
        rows = recent(cursor, sweeper, window=window, failed=failed, most=limit)
    if form == "json":
        for row in rows:
            click.echo(json.dumps(as_json(row)))
    elif not rows:
        click.echo("no such run in the ledger; `sb-worker status` has the sweepers and their next ticks", err=True)
    elif form == "wide":
        Terminal(width=_WIDEST, soft_wrap=True).print(table(rows, None))
    else:
        console = Terminal()
        console.print(table(rows, console.width))


def as_json(row: Entry) -> dict[str, Any]:
    """Return a run in JSON's types, lengths of time in seconds."""
    columns = row._asdict() | {"counts": row.numbers}
    plain = {key: value.isoformat() if isinstance(value, datetime) else value for key, value in columns.items()}
    took = None if row.took is None else row.took.total_seconds()
    return {**plain, "late_seconds": row.late.total_seconds(), "took_seconds": took}


def table(rows: Sequence[Entry], width: int | None) -> Table:
    """Return a table of runs that is at most so wide; None: as wide as it needs to be."""
    days = {row.slot.astimezone(UTC).date() for row in rows}
    cells = {heading: [cell(row) for row in rows] for heading, cell in _cells(dates=len(days) > 1).items()}
    sizes = {heading: max(len(heading), *map(len, column)) for heading, column in cells.items()}
    if width is not None:
        sizes = fitting(sizes, width, expendable=_EXPENDABLE, cut="outcome", least=_LEAST_OUTCOME)
    shown = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
    if len(days) == 1:
        shown.title, shown.title_justify, shown.title_style = f"{days.pop()}, UTC", "left", "dim"
    for heading, size in sizes.items():
        shown.add_column(heading, width=size, no_wrap=True, justify="right" if heading in _RIGHT else "left")
    for number, row in enumerate(rows):
        style = _STYLES.get(row.outcome, "")
        shown.add_row(*(Text(cells[heading][number], style if heading == "outcome" else "") for heading in sizes))
    return shown


def _cells(*, dates: bool) -> dict[str, Callable[[Entry], str]]:
    form = "%m-%d %H:%M:%S" if dates else "%H:%M:%S"
    return {
        "sweeper": lambda row: row.name,
        "slot": lambda row: row.slot.astimezone(UTC).strftime(form),
        "late": lambda row: length(row.late),
        "took": lambda row: "-" if row.took is None else length(row.took),
        "changed": lambda row: f"{row.changed:,}",
        "outcome": _outcome,
        "counts": lambda row: " ".join(f"{name}={count}" for name, count in row.numbers.items() if count),
        "by": lambda row: row.worker,
    }


def _outcome(row: Entry) -> str:
    words = (
        f"{row.outcome}{', more to do' * row.handed_over}",
        row.error,
        f"covers {row.covered:,}" * (row.covered > 0 and row.outcome != "failure"),
        f"by hand of {typed(row.requested_by)}" if row.requested_by else "",
    )
    return " ".join(filter(None, words))
