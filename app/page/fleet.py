"""The table of processes: which live, on which version, by which clock, and what they do otherwise than the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

from app.core.values import format_duration
from app.fleet.processes import Process
from app.overview.model import Overview, State
from app.page.format import ago, plural, seconds
from app.page.markup import Child, Html, join, tag
from app.page.table import Column, clipped, marked, note, section, table

#: Processes that are shown, the living ones first.
MOST_PROCESSES = 40
#: How long one that is gone or has ended is shown, and how many of those.
_GONE_WITHIN, _MOST_GONE = timedelta(hours=1), 8
#: A clock that is off by more is shown as a fault.
_CLOCK_FAULT = timedelta(seconds=2)
#: Differences of one process that are spelt out.
_MOST_DIFFERENCES = 3

_KINDS = ("worker", "notifier", "scheduler")
_COLUMNS = (
    Column("Process"),
    Column("Host", class_="w8"),
    Column("PID", number=True),
    Column("Version"),
    Column("State"),
    Column("Since", number=True),
    Column("Seen", number=True),
    Column("Clock", number=True),
    Column("Remarks", class_="w12"),
)


def processes(overview: Overview) -> Html:
    """Return the section."""
    known = sorted(recent(overview), key=_order)
    shown, hidden = known[:MOST_PROCESSES], len(known) - MOST_PROCESSES
    versions = Counter(process.version for process in known if process.alive)
    usual = versions.most_common(1)[0][0] if versions else ""
    cadences = {view.name: view.interval for view in overview.sweepers if view.state is not State.OFF}
    rows = [_cells(process, overview, cadences, usual) for process in shown]
    content = (
        table("Processes that gave a sign of life in the last hour; clocks against that of PostgreSQL.", _COLUMNS, rows)
        if rows
        else tag("p", "No process has given a sign of life lately.", class_="empty")
    )
    more = tag("p", f"and {plural(hidden, 'more process', 'more processes')}", class_="empty") if hidden > 0 else None
    return section("processes", "Processes", content, more, beside=alive(overview))


def recent(overview: Overview) -> list[Process]:
    """Return the living processes, and the newest of those that are gone or have ended a short while ago."""
    dead = [process for process in overview.processes if not process.alive]
    dead = [process for process in dead if overview.now - process.seen_at < _GONE_WITHIN]
    dead.sort(key=lambda process: process.seen_at, reverse=True)
    return [*(process for process in overview.processes if process.alive), *dead[:_MOST_GONE]]


def _order(process: Process) -> tuple[bool, str, int, int]:
    """Return what sorts the living ones first, and those of one host together."""
    kind = _KINDS.index(process.kind) if process.kind in _KINDS else len(_KINDS)
    return not process.alive, process.host, kind, process.pid


def alive(overview: Overview) -> str:
    """Return how many processes of each kind live, in words."""
    kinds = Counter(process.kind for process in overview.processes if process.alive)
    return ", ".join(plural(number, kind) for kind, number in sorted(kinds.items()))


def _cells(
    process: Process, overview: Overview, cadences: dict[str, timedelta], usual_version: str
) -> tuple[Child, ...]:
    now = overview.now
    return (
        clipped(process.kind, "name"),
        clipped(process.host),
        str(process.pid),
        clipped(process.version) if process.version == usual_version else marked("warn", clipped(process.version)),
        _state(process),
        ago(process.started_at, now),
        ago(process.seen_at, now),
        _clock(process),
        join(*(note(text, tone="t-warn") for text in _differences(process, cadences)), _tick(process, overview)),
    )


def _state(process: Process) -> Html:
    if process.ended_at is not None:
        return marked("off", "ended")
    if not process.alive:
        return marked("unknown", "gone")
    return marked("paused", "draining") if process.draining else marked("ok", "alive")


def _clock(process: Process) -> Child:
    ahead = process.clock_ahead
    text = f"{'+' if ahead >= timedelta(0) else ''}{seconds(ahead.total_seconds())}"
    return marked("bad", text) if abs(ahead) > _CLOCK_FAULT and process.alive else text


def _tick(process: Process, overview: Overview) -> Html | None:
    if process.ticked_at is None or not process.alive:
        return None
    return note("last tick ", ago(process.ticked_at, overview.now))


def _differences(process: Process, cadences: dict[str, timedelta]) -> Iterator[str]:
    """Yield what a living process means to do otherwise than this one does."""
    if not process.alive:
        return
    found = [
        f"{name} every {format_duration(interval)}"
        for name, interval in process.cadences.items()
        if name in cadences and interval != cadences[name]
    ]
    found += [f"{name} off ({switch})" for name, switch in process.off.items() if name in cadences]
    yield from found[:_MOST_DIFFERENCES]
    if len(found) > _MOST_DIFFERENCES:
        yield f"and {len(found) - _MOST_DIFFERENCES} more"
