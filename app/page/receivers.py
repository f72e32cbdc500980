"""The tables of receivers of notifications, and of runs that failed."""

from __future__ import annotations

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
    Column("When"),
    Column("Sweeper"),
    Column("Outcome"),
    Column("Error", class_="w8"),
    Column("Rows", number=True),
    Column("Ran on", class_="w8"),
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
    """Return the section of the newest runs that did not succeed."""
    failed = [(run, view.name) for view in overview.sweepers for run in view.runs if run.outcome in FAILED]
    failed.sort(key=lambda found: found[0].started_at, reverse=True)
    rows = [_failure(run, name, overview) for run, name in failed[:MOST_FAILURES]]
    beside = f"the newest {MOST_FAILURES} of {len(failed):,}" if len(failed) > MOST_FAILURES else None
    content = (
        table("Runs that failed or were cut short: an error's class and SQLSTATE.", _FAILURES, rows)
        if rows
        else tag("p", "None among the runs above.", class_="empty")
    )
    return section("failures", "Last failures", content, beside=beside)


def _failure(run: RunPoint, name: str, overview: Overview) -> tuple[Child, ...]:
    return (
        ago(run.started_at, overview.now),
        clipped(name, "name"),
        marked("bad" if run.outcome == "failure" else "paused", run.outcome),
        tag("span", run.error or NONE, class_="mono"),
        count(run.changed),
        clipped(run.worker or NONE, "clip mono"),
    )
