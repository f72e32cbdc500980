"""The screen of `sb-worker status`, on terminals of any size."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from rich.console import Console

from app.cli.overview import screen
from app.overview import verdict
from app.overview.model import Holder, Overview, State, SweeperView
from app.sweeping.scans.due import Backlog
from tests.overview.test_verdict import MINUTE, NOW, RUN, SECOND, WELL, ago, sweeper, without

LONGEST = "cross-team-fill-window-expired"


def many(count: int) -> Overview:
    """Return an overview of so many sweepers, one of each kind in trouble."""
    others = [sweeper(f"sweeper-{number}") for number in range(count - 5)]
    views = [
        sweeper(
            LONGEST, runs=(replace(RUN, handed_over=True, lateness=123.4),), backlog=Backlog(10_000, NOW, more=True)
        ),
        *others,
        sweeper("agents-stale", failures=3, error="UndefinedTable 42P01", sqlstate="42P01"),
        sweeper("late", overdue_since=ago(50 * SECOND), holder=Holder("", ago(40 * SECOND), SECOND)),
        sweeper("paused", state=State.PAUSED, since=ago(3 * 60 * MINUTE), until=NOW + timedelta(hours=3)),
        sweeper("new", runs=(), last_success=None),
    ]
    return verdict.judge(replace(WELL, sweepers=tuple(views)))


def render(overview: Overview, width: int, height: int | None = None, **more: Any) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height or 25)
    shown = screen.fitted(overview, width, height, **more) if height else screen.whole(overview, width, **more)
    with console.capture() as capture:
        console.print(shown)
    return [line.rstrip() for line in capture.get().splitlines()]


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (140, 50), (200, 60)])
@pytest.mark.parametrize("count", [5, 11, 21, 60])
def test_fits_the_terminal(size: tuple[int, int], count: int) -> None:
    width, height = size
    lines = render(many(count), width, height)
    assert max(map(len, lines)) <= width
    assert len(lines) <= height
    assert lines[0].startswith("degraded: ")
    assert "…" not in lines[1]
    assert any("`sb-worker unlock late`" in line for line in lines)


@pytest.mark.parametrize("width", [*range(1, 60, 7), *range(60, 260, 20)])
def test_no_width_breaks_a_line(width: int) -> None:
    lines = render(many(6), width, 24)
    assert max(map(len, lines)) <= width
    assert width < 45 or "…" not in lines[1]


def test_eighty_columns_have_what_matters_and_more_have_more() -> None:
    views = [sweeper(LONGEST, runs=(replace(RUN, handed_over=True),)), sweeper("killed")]
    overview = verdict.judge(replace(WELL, sweepers=tuple(views)))
    assert render(overview, 80)[1].split() == ["sweeper", "every", "next", "last", "run", "state", "late", "due"]
    every = [
        "sweeper",
        "every",
        "next",
        "last",
        "run",
        "state",
        "late",
        "rows",
        "due",
        "oldest",
        "overdue",
        "took",
        "lock",
    ]
    assert render(overview, 200)[1].split() == every
    assert render(overview, 250, wide=True)[1].split() == every


def test_a_sweeper_in_trouble_is_not_among_those_left_out() -> None:
    lines = render(many(40), 80, 24)
    names = [line.split()[0] for line in lines[2:] if line and line[0] not in "-! "]
    assert {"agents-stale", "late", "paused", "new"} <= set(names)
    assert any(line.startswith("+") and line.endswith(" more") for line in lines)


def state(view: SweeperView, overview: Overview = WELL) -> str:
    (line,) = render(verdict.judge(replace(overview, sweepers=(view,))), 250)[2:3]
    return " ".join(line.split())


@pytest.mark.parametrize(
    ("view", "text"),
    [
        (sweeper(), "wraps-expired 1m 1m 30s success 10ms 3 - - - 5ms -"),
        (sweeper(overdue_since=ago(50 * SECOND)), "overdue 50s"),
        (sweeper(failures=3, error="LockNotAvailable 55P03", sqlstate="55P03"), "failing 3x 55P03"),
        (sweeper(failures=1, error="PoolTimeout"), "failing 1x PoolTimeout"),
        (sweeper(state=State.PAUSED, until=NOW + MINUTE), "1m - 30s paused, 1m left"),
        (sweeper(state=State.BRAKED), "braked"),
        (sweeper(state=State.OFF, runs=()), "1m - - off"),
        (sweeper(state=State.RESTING), "resting"),
        (sweeper(runs=()), "never ran"),
        (sweeper(backlog=Backlog(1200, ago(MINUTE))), "3 1,200 1m"),
        (sweeper(holder=Holder("host:7", ago(2 * SECOND), SECOND)), "host:7 2s"),
        (sweeper(holder=Holder("", ago(2 * SECOND), SECOND)), "taken 2s"),
        (sweeper(holder=Holder("", ago(2 * SECOND), SECOND), overdue_since=ago(SECOND)), "stranger 2s"),
    ],
)
def test_a_sweepers_line(view: SweeperView, text: str) -> None:
    assert text in state(view)


def test_nothing_is_counted_down_to_where_nobody_sends_ticks() -> None:
    assert "1m - 30s success" in state(sweeper(), without("scheduler"))


def test_without_postgres_the_servers_and_what_to_do_are_shown() -> None:
    servers = (replace(WELL.servers[0], problem="unreachable", detail="the connection is refused"), WELL.servers[1])
    lines = render(verdict.judge(Overview("", NOW, (), (), (), servers)), 80)
    assert lines[0] == "cannot tell: PostgreSQL: the connection is refused  09:00:00Z"
    assert lines[1] == "servers   postgres unreachable, redis 7.2.4"
    assert lines[2] == "! PostgreSQL: the connection is refused"
    assert lines[3].startswith("  -> start PostgreSQL")
