"""The harness of `make bench`, with numbers that say nothing: rounds, results, table and plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench import capacity, report, results
from bench.measurement import Arms, Figure, Measurement, Size, measurement
from bench.measures import MEASUREMENTS
from bench.results import Result

FIGURES = (
    Figure("rate", "rows a second", "rows/s", 0.5, ratio=True),
    Figure("worst", "worst wait", "ms", 10, less=True),
    Figure("calls", "calls"),
)
#: Those that need nothing but the servers, and little of them.
SMALL = ("sweep-network-1ms", "sweep-local", "flip-jobs", "sweep-locked", "tick-nothing", "tick-cost")
TINY = Size(quick=True, share=0.01)


def nothing(_text: str) -> None:
    pass


def counting(turns: list[str]) -> Measurement:
    """Return a measurement that notes whose turn it is; ours is half as fast, and slower each time."""

    def turn(name: str, rate: float) -> Mapping[str, float]:
        turns.append(name)
        return {"rate": rate, "worst": 5.0 * len(turns), "calls": 1}

    @measurement("counting", "nothing", best="less", figures=FIGURES)
    def opened(size: Size) -> Iterator[Arms]:
        del size
        yield Arms(lambda: turn("best", 100), lambda: turn("ours", 50))
        turns.append("closed")

    return opened


def taken(measurement: Measurement, rounds: int = 3) -> Result:
    found = measurement.alternate(TINY, rounds, 60, nothing)
    return Result(
        measurement.name, "quick", results.now(), results.revision(), results.machine(), results.versions(), found
    )


def test_arms_are_taken_by_turns_and_closed() -> None:
    turns: list[str] = []
    assert len(counting(turns).alternate(TINY, 2, 60, nothing)) == 2
    assert turns == ["best", "ours", "best", "ours", "closed"]


def test_one_round_is_taken_when_there_is_no_time() -> None:
    assert len(counting([]).alternate(TINY, 5, 0, nothing)) == 1


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    result = taken(counting([]))
    results.save(result, tmp_path)
    assert results.load(tmp_path, ["counting", "not there"]) == {"counting": result}
    ratio, ours = result.ratio("rate"), result.ours("worst")
    assert ratio == (0.5, 0.5, 0.5)
    assert ours == (20, 10, 30)
    assert result.ratio("not there") is None


def test_the_table_and_the_plots_show_before_and_now(tmp_path: Path) -> None:
    subject = counting([])
    for name, rounds in (("before", 1), ("now", 3)):
        results.save(taken(subject, rounds), tmp_path / name)
    written = list(report.write([subject], before=tmp_path / "before", now=tmp_path / "now", beside=tmp_path))
    table = (tmp_path / "table.md").read_text()
    assert "| rows a second | 100 rows/s | 50 rows/s | 50 rows/s | 0.5 | 0.5 | ≥ 0.5 x, met |" in table
    assert "| nothing (`counting`) | rows a second | 0.5 x | 0.5 x | ≥ 0.5 x, met |" in table
    assert "| ≤ 10 ms, missed |" in table
    assert [path.name for path in written] == ["table.md", "goals.svg", "network.svg", "scale.svg"]
    for plot in tmp_path.glob("*.svg"):
        assert ET.parse(plot).getroot().tag.endswith("svg")
    assert (tmp_path / "goals.svg").read_text().count("counting: rows a second") == 1


def test_a_table_without_results_says_so(tmp_path: Path) -> None:
    list(report.write(MEASUREMENTS, before=tmp_path / "before", now=tmp_path / "now", beside=tmp_path))
    assert "Now: not measured yet." in (tmp_path / "table.md").read_text()


def test_measurements_have_names_of_their_own_and_goals_about_figures_of_their_own() -> None:
    assert len({one.name for one in MEASUREMENTS}) == len(MEASUREMENTS)
    for one in MEASUREMENTS:
        assert len({figure.name for figure in one.figures}) == len(one.figures)


@pytest.mark.parametrize("one", [one for one in MEASUREMENTS if one.name in SMALL], ids=lambda one: one.name)
def test_a_measurement_returns_every_figure(one: Measurement) -> None:
    (found,) = one.alternate(TINY, 1, 60, nothing)
    assert {figure.name for figure in one.figures} <= found.ours.keys()
    assert found.baseline


def test_the_docs_have_the_tables_that_the_results_make() -> None:
    names = [one.name for one in MEASUREMENTS]
    old, new = (results.load(results.RESULTS / kind, names) for kind in (results.BEFORE, results.NOW))
    page, scale = (path.read_text(encoding="utf-8") for path in (report.DOCS, report.SCALE))
    assert report.include(page, report.summary(results.RESULTS / "table.md")) == page
    assert report.include(scale, capacity.table({**old, **new})) == scale
