"""The tables of receivers of notifications, and of runs that failed."""

from __future__ import annotations

from collections import defaultdict

from app.overview.model import Overview, RunPoint, SinkView
from app.page.format import NONE, ago, at, count, plural, span
from app.page.markup import Child, Html, join, tag
from app.page.sweepers import FAILED
from app.page.table import Column, clipped, marked, note, section, table

#: Receivers and failed runs that are shown.
MOST_RECEIVERS, MOST_FAILURES = 40, 12
_SHAPES = {"on": "ok", "off": "bad", "muted": "paused", "resting": "paused"}
_RECEIVERS = (
    Column("Receiver"),
    Column("State", class_="w12"),
    Column("Waiting", number=True),
    Column("Oldest", number=True),
    Column("Dead letters", number=True),
)
_FAILURES = (
    Column("Last"),
    Column("Sweeper", class_="w8"),
    Column("Outcome"),
    Column("Error", class_="w8"),
    Column("Runs", number=True),
    Column("First", number=True),
    Column("Ran on", class_="w12"),
)


def receivers(overview: Overview) -> Html:
    """Return the section of those that are notified."""
    rows = [_receiver(sink, overview) for sink in overview.sinks[:MOST_RECEIVERS]]
    hidden = len(overview.sinks) - len(rows)
    more = tag("p", f"and {plural(hidden, 'more receiver')}", class_="empty") if hidden else None
    content = table("What waits to be delivered, and what was given up.", _RECEIVERS, rows)
    return section("receivers", "Notifications", content, more)


def _receiver(sink: SinkView, overview: Overview) -> tuple[Child, ...]:
    until = (" until ", at(sink.until, overview.now)) if sink.until else ()
    return (
        clipped(sink.name, "name"),
        join(
            marked(_SHAPES.get(sink.state, "unknown"), sink.state, *until), note(sink.reason) if sink.reason else None
        ),
        count(sink.waiting),
        span(overview.now - sink.oldest_waiting) if sink.oldest_waiting else NONE,
        marked("bad", count(sink.dead)) if sink.dead else "0",
    )


def failures(overview: Overview) -> Html:
    """Return the section of runs that did not succeed, those that ended alike in one row, the newest first."""
    alike: dict[tuple[str, str, str], list[RunPoint]] = defaultdict(list)
    for view in overview.sweepers:
        for run in view.runs:
            if run.outcome in FAILED:
                alike[view.name, run.outcome, run.error].append(run)
    found = sorted(alike.items(), key=lambda item: item[1][-1].started_at, reverse=True)
    rows = [_failure(name, runs, overview) for (name, _, _), runs in found[:MOST_FAILURES]]
    beside = f"the newest {MOST_FAILURES} of {len(found):,} kinds" if len(found) > MOST_FAILURES else None
    caption = "Runs that failed or were cut short, among those above: an error's class and SQLSTATE."
    content = table(caption, _FAILURES, rows) if rows else tag("p", "None among the runs above.", class_="empty")
    return section("failures", "Last failures", content, beside=beside)


def _failure(name: str, runs: list[RunPoint], overview: Overview) -> tuple[Child, ...]:
    first, last = runs[0], runs[-1]
    return (
        ago(last.started_at, overview.now),
        clipped(name, "name"),
        marked("bad" if last.outcome == "failure" else "paused", last.outcome),
        clipped(last.error or NONE, "clip mono"),
        count(len(runs)),
        ago(first.started_at, overview.now) if len(runs) > 1 else NONE,
        clipped(last.worker or NONE, "clip mono"),
    )
