"""The demo's table, on terminals of any size."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from app.demo.view import SweeperStatus, table

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
SIZES = [(80, 24), (100, 30), (140, 50)]
LONGEST = "cross-team-fill-window-expired"
FAILURE = "failure UndefinedTable 42P01"


def status(name: str, outcome: str = "success", **more: Any) -> SweeperStatus:
    ran = NOW - timedelta(seconds=1234)
    known = SweeperStatus(name, timedelta(minutes=5), NOW, NOW + timedelta(seconds=299), ran)
    numbers: dict[str, Any] = {
        "seconds": 1.234,
        "lateness": 0.106,
        "changed": 12_345,
        "total": 1_234_567,
        "succeeded": 98_765,
    }
    return SweeperStatus(**{**vars(known), **numbers, "outcome": outcome, "worker": "host:4194304", **more})


def sweepers(count: int) -> list[SweeperStatus]:
    others = [status(f"sweeper-{number}") for number in range(count - 4)]
    failed = status("agents-stale", "failure", error="UndefinedTable 42P01")
    new = SweeperStatus("new", timedelta(hours=24), NOW, NOW + timedelta(hours=1))
    return [status(LONGEST, handed_over=True), *others, failed, status("killed", "interrupted"), new]


def render(statuses: list[SweeperStatus], width: int, height: int | None) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height or 25)
    with console.capture() as capture:
        console.print(table(statuses, width, height))
    return [line.rstrip() for line in capture.get().splitlines()]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [4, 11, 21, 60])
def test_fits_the_terminal(size: tuple[int, int], count: int) -> None:
    width, height = size
    lines = render(sweepers(count), width, height)
    assert max(map(len, lines)) <= width
    assert len(lines) == min(count + 1, height)
    assert "…" not in lines[0]


@pytest.mark.parametrize(
    ("width", "headings"),
    [
        (80, "sweeper every next last run outcome late"),
        (100, "sweeper every next last run outcome took late changed"),
        (140, "sweeper every next last run outcome took late changed in all runs by"),
    ],
)
def test_what_matters_least_is_left_out_on_a_narrow_terminal(width: int, headings: str) -> None:
    lines = render([status(LONGEST, handed_over=True), status("killed", "interrupted")], width, 24)
    assert " ".join(lines[0].split()) == headings
    assert "success, more" in lines[1]


@pytest.mark.parametrize("width", range(1, 200))
def test_no_width_breaks_a_heading_or_a_line(width: int) -> None:
    lines = render(sweepers(5), width, 24)
    assert max(map(len, lines)) <= width
    assert len(lines) == 6
    assert width < 39 or "…" not in lines[0]


@pytest.mark.parametrize(("width", "text"), [(80, "failure UndefinedTable…"), (100, FAILURE), (140, FAILURE)])
def test_a_failure_takes_the_place_of_numbers(width: int, text: str) -> None:
    lines = render(sweepers(5), width, 24)
    assert any(text in line for line in lines)
    assert "…" not in lines[0]


def test_a_sweeper_in_trouble_is_not_among_those_left_out() -> None:
    lines = render(sweepers(40), 80, 10)
    assert lines[-1] == "+32 more"
    assert [line.split()[0] for line in lines[1:-1]] == [
        LONGEST,
        *(f"sweeper-{number}" for number in range(4)),
        "agents-stale",
        "killed",
        "new",
    ]


def test_without_a_height_all_are_shown() -> None:
    assert len(render(sweepers(60), 80, None)) == 61
