"""The table of sweepers: whether each is to run, when it ran, how that ended, and what is left to do."""

from __future__ import annotations

from datetime import timedelta

from app.core.values import format_duration
from app.overview.model import Overview, RunPoint, State, SweeperView
from app.page.format import NONE, ago, at, count, plural, seconds, span
from app.page.markup import Child, Html, join, tag
from app.page.sparkline import MOST_BARS, Bar, sparkline
from app.page.table import Column, clipped, marked, note, section, table

_COLUMNS = (
    Column("Sweeper"),
    Column("State", class_="w6"),
    Column("Every", number=True, class_="w3"),
    Column("Next", number=True, class_="w3"),
    Column("Last run", number=True, class_="w3"),
    Column("Outcome", class_="w6 short"),
    Column("Rows changed", class_="chart w6"),
    Column("Late", class_="chart w6"),
    Column("Backlog", number=True, class_="w3"),
)
_SHAPES = {
    State.ON: "ok",
    State.OFF: "off",
    State.PAUSED: "paused",
    State.BRAKED: "bad",
    State.RESTING: "unknown",
}
#: What is said of a reason: a variable, a table, a word of the brake's.
_REASONS = {
    State.OFF: "{} is not set",
    State.RESTING: "{} is not there",
    State.BRAKED: "before it changed anything: {}",
}
_OUTCOMES = {"success": "ok", "failure": "bad", "interrupted": "paused", "running": "busy"}
#: What ended otherwise than it should.
FAILED = frozenset({"failure", "interrupted"})
#: Rows and seconds that a bar's full height stands for at least.
_LEAST_ROWS, _LEAST_SECONDS = 4.0, 0.5
#: Sessions that one sweeper waits for which are named.
_MOST_BLOCKERS = 3


def sweepers(overview: Overview) -> Html:
    """Return the section."""
    ticked = any(process.alive and process.schedules for process in overview.processes)
    rows = [_cells(view, overview, ticked=ticked) for view in overview.sweepers]
    caption = (
        f"Each sweeper with its last {MOST_BARS} runs, the newest at the right. A mark below the line is one that did "
        "not succeed; a stronger bar is higher than there is room for."
    )
    return section("sweepers", "Sweepers", table(caption, _COLUMNS, rows, "sweepers"))


def _cells(view: SweeperView, overview: Overview, *, ticked: bool) -> tuple[Child, ...]:
    now, last = overview.now, view.last
    waits = view.state in (State.ON, State.RESTING) and ticked
    return (
        clipped(view.name, "name"),
        _state(view, overview),
        format_duration(view.interval),
        f"in {span(view.next_tick - now)}" if waits and view.next_tick > now else ("now" if waits else NONE),
        ago(last.started_at, now) if last else "never",
        _outcome(view, overview),
        _chart(f"{view.name}, rows changed", count(last.changed) if last else NONE, _rows(view.runs), _LEAST_ROWS),
        _chart(
            f"{view.name}, lateness", seconds(last.lateness) if last else NONE, _lateness(view.runs), _LEAST_SECONDS
        ),
        _backlog(view, overview),
    )


def _state(view: SweeperView, overview: Overview) -> Html:
    now = overview.now
    if view.overdue_since is not None:
        overdue = note(f"since {span(now - view.overdue_since)}, ", at(view.overdue_since, now), tone="t-bad")
        return join(marked("bad", "overdue"), overdue, _holder(view, overview))
    until = (" until ", at(view.until, now)) if view.until else ()
    since = (" since ", at(view.since, now)) if view.since and not view.until else ()
    reason = note(_REASONS.get(view.state, "{}").format(view.reason)) if view.reason else None
    return join(marked(_SHAPES[view.state], view.state.value, *until, *since), reason, _holder(view, overview))


def _holder(view: SweeperView, overview: Overview) -> Html | None:
    if view.holder is None:
        return None
    since = f", {span(overview.now - view.holder.since)}" if view.holder.since else ""
    if view.holder.worker:
        return note("runs on ", tag("span", view.holder.worker, class_="mono"), since)
    return note(f"lock held by a stranger{since}", tone="t-bad")


def _outcome(view: SweeperView, overview: Overview) -> Child:
    last = view.last
    if last is None:
        return NONE
    took = seconds(last.seconds) if last.seconds is not None else ""
    notes: list[Child] = []
    if error := last.error or view.error:
        notes.append(note(error, tone="mono"))
    if view.failures:
        since = ("; since ", at(view.failing_since, overview.now)) if view.failing_since else ()
        notes.append(note(f"{view.failures:,} in a row", *since, tone="t-bad"))
    for blocker in view.blockers[:_MOST_BLOCKERS]:
        state = f" ({blocker.state})" if blocker.state else ""
        notes.append(note(f"waits for session {blocker.pid}{state} at {blocker.table or 'a table'}", tone="t-bad"))
    if last.requested_by:
        notes.append(note(f"asked for by {last.requested_by}"))
    if last.handed_over:
        notes.append(note("more is left for the next"))
    if last.covered:
        notes.append(note(f"covers {plural(last.covered, 'missed slot')}"))
    return join(
        marked(_OUTCOMES.get(last.outcome, "unknown"), last.outcome, " ", tag("span", took, class_="took")), *notes
    )


def _backlog(view: SweeperView, overview: Overview) -> Child:
    backlog = view.backlog
    if backlog is None:
        return NONE
    number = f"{count(backlog.rows)}{'+' if backlog.more else ''}"
    age = overview.now - backlog.since if backlog.rows and backlog.since else timedelta(0)
    return join(number, note(f"for {span(age)}") if age > view.interval else None)  # younger ones are the next run's


def _chart(what: str, number: str, bars: list[Bar], least_scale: float) -> Html:
    failed = sum(bar.failed for bar in bars)
    ended = f", {failed} did not succeed" if failed else ""
    drawn = sparkline(f"{what}: last {len(bars)} runs{ended}", bars, least_scale=least_scale)
    return tag("div", tag("span", number, class_="n"), drawn)


def _rows(runs: tuple[RunPoint, ...]) -> list[Bar]:
    return [Bar(run.changed, run.outcome in FAILED) for run in runs[-MOST_BARS:]]


def _lateness(runs: tuple[RunPoint, ...]) -> list[Bar]:
    return [Bar(run.lateness, run.outcome in FAILED) for run in runs[-MOST_BARS:]]
