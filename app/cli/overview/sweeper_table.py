"""The table of sweepers: as many columns and lines as there is room for, the most important ones first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from types import MappingProxyType

from rich.table import Table
from rich.text import Text

from app.cli.columns import GAP, fitting
from app.overview.model import Overview, State, SweeperView
from app.overview.words import length

Cell = Callable[[SweeperView, Overview], str]


def _next(view: SweeperView, overview: Overview) -> str:
    """Say when the next tick comes; nobody sends one without a scheduler."""
    if view.state is not State.ON or not any(one.alive and one.schedules for one in overview.processes):
        return "-"
    return length(view.next_tick - overview.now) if view.next_tick - overview.now >= _SECOND else "0s"


def _state(view: SweeperView, overview: Overview) -> str:
    """Say the one thing that matters most of how it stands."""
    if view.state is not State.ON:
        left = f", {length(view.until - overview.now)} left" if view.until else ""
        return f"{view.state}{left}"
    if view.failures:
        return f"failing {view.failures}x {view.sqlstate or view.error}".rstrip()
    if view.overdue_since is not None:
        return f"overdue {length(overview.now - view.overdue_since)}"
    if view.last is None:
        return "never ran"
    handed_over = view.last.handed_over and view.last.outcome == "success"
    return "handed over" if handed_over else view.last.outcome


def _style(view: SweeperView) -> str:
    if view.state is not State.ON:
        return "dim" if view.state is State.OFF else "yellow"
    if view.failures or view.overdue_since is not None:
        return "bold red"
    return _STYLES.get(view.last.outcome if view.last else "", "dim")


def _due(view: SweeperView, _overview: Overview) -> str:
    return "-" if view.backlog is None else f"{'>' * view.backlog.more}{view.backlog.rows:,}"


def _oldest(view: SweeperView, overview: Overview) -> str:
    return length(overview.now - view.backlog.since) if view.backlog and view.backlog.since else "-"


def _owed(view: SweeperView, overview: Overview) -> str:
    return length(overview.now - view.overdue_since) if view.overdue_since else "-"


def _lock(view: SweeperView, overview: Overview) -> str:
    if view.holder is None:
        return "-"
    since = f" {length(overview.now - view.holder.since)}" if view.holder.since else ""
    return f"{view.holder.worker or ('stranger' if view.overdue_since else 'taken')}{since}"


def _took(view: SweeperView, _overview: Overview) -> str:
    return "-" if view.last is None or view.last.seconds is None else f"{view.last.seconds * 1000:.0f}ms"


def _late(view: SweeperView, _overview: Overview) -> str:
    if view.last is None:
        return "-"
    late = view.last.lateness
    return f"{late * 1000:.0f}ms" if late < 10 else f"{late:.0f}s"  # noqa: PLR2004 - seconds, from ten on


_CELLS: Mapping[str, Cell] = MappingProxyType(
    {
        "sweeper": lambda view, _: view.name,
        "every": lambda view, _: length(view.interval),
        "next": _next,
        "last run": lambda view, at: length(at.now - view.last.started_at) if view.last else "-",
        "state": _state,
        "late": _late,
        "rows": lambda view, _: f"{view.last.changed:,}" if view.last else "-",
        "due": _due,
        "oldest": _oldest,
        "overdue": _owed,
        "took": _took,
        "lock": _lock,
    }
)
_LEFT_ALIGNED = ("sweeper", "every", "state", "lock")
#: What is left out first on a narrow terminal; a state is only cut.
_EXPENDABLE = ("took", "overdue", "oldest", "lock", "rows", "late", "due", "state", "every", "last run", "next")
#: Characters that are reserved for growing values: without them headings would come and go.
_RESERVED = MappingProxyType({"next": 5, "last run": 8, "state": 11, "late": 5, "rows": 4, "due": 4})
_STYLES = MappingProxyType({"success": "green", "interrupted": "yellow", "running": "cyan"})
_SECOND = timedelta(seconds=1)


def table(overview: Overview, width: int | None, height: int | None = None) -> Table:
    """Return a table that is at most `width` columns wide and `height` lines high; None: as it comes.

    What does not fit is left out: the least important columns, then sweepers that are well, in place of which a line
    has their number.
    """
    cells = {heading: [cell(view, overview) for view in overview.sweepers] for heading, cell in _CELLS.items()}
    shown = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
    widths = _widths(cells, width)
    for heading, size in widths.items():
        left = heading in _LEFT_ALIGNED
        shown.add_column(heading, width=size, no_wrap=True, justify="left" if left else "right")
    kept = _kept(overview, height)
    for row in kept:
        style = _style(overview.sweepers[row])
        shown.add_row(*(Text(cells[heading][row], style if heading == "state" else "") for heading in widths))
    if more := len(overview.sweepers) - len(kept):
        shown.add_row(f"+{more} more", style="dim")
    return shown


def _widths(cells: Mapping[str, list[str]], width: int | None) -> dict[str, int]:
    """Return the columns that fit, and how wide each of them is."""
    widths = {heading: max(len(heading), _RESERVED.get(heading, 0), *map(len, own)) for heading, own in cells.items()}
    if width is None:
        return widths
    return fitting(widths, width, expendable=_EXPENDABLE, cut="state", least=_RESERVED["state"])


def _kept(overview: Overview, height: int | None) -> list[int]:
    """Return the sweepers that are shown, those first of which something is to be said."""
    rows = range(len(overview.sweepers))
    if height is None or len(rows) < height:
        return list(rows)
    return sorted(sorted(rows, key=lambda row: _is_well(overview.sweepers[row]))[: max(0, height - 2)])


def _is_well(view: SweeperView) -> bool:
    """Return whether nothing is to be said of a sweeper: it is off, or its last run was fine and no other is owed."""
    if view.state is not State.ON:
        return view.state is State.OFF
    fine = view.last is not None and view.last.outcome in ("success", "running")
    return fine and not view.failures and view.overdue_since is None
