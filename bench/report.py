"""Results as a table, in one line, and as plots."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bench import capacity, plots, results
from bench.measurement import Figure, Measurement
from bench.results import ROOT, Result, Spread

DOCS = ROOT / "docs" / "performance.md"
SCALE = ROOT / "docs" / "scale.md"
#: What is between these in both pages is written by this module.
BEGIN, END = "<!-- begin: written by `make bench` -->\n", "<!-- end -->\n"
_TITLE = "# Measured\n\n"
_HEAD = """\
| figure | the best beside it | ours before | ours now | ours / best before | ours / best now | goal |
|---|---|---|---|---|---|---|
"""


def write(
    measurements: Sequence[Measurement], *, before: Path, now: Path, beside: Path, docs: bool = False
) -> Iterator[Path]:
    """Write the table and the plots into the folder `beside`, and the table into the docs; yield what was written."""
    names = [measurement.name for measurement in measurements]
    old, new = results.load(before, names), results.load(now, names)
    table = "".join(_summary(measurements, old, new))
    details = "".join(_details(measurements, old, new))
    beside.mkdir(parents=True, exist_ok=True)
    (beside / "table.md").write_text(f"{_TITLE}{table}\n## All figures\n{details}", encoding="utf-8")
    yield beside / "table.md"
    for name, drawing in plots.draw(measurements, old, new).items():
        (beside / name).write_text(drawing, encoding="utf-8")
        yield beside / name
    if docs:
        for page, part in ((DOCS, table), (SCALE, capacity.table({**old, **new}))):
            page.write_text(include(page.read_text(encoding="utf-8"), part), encoding="utf-8")
            yield page


def summary(path: Path) -> str:
    """Return the first part of a table.md."""
    return path.read_text(encoding="utf-8").removeprefix(_TITLE).partition("\n## All figures\n")[0]


def include(page: str, table: str) -> str:
    """Return the page with its table replaced by this one."""
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    return pattern.sub(lambda _match: f"{BEGIN}\n{table}\n{END}", page)


def line(measurement: Measurement, result: Result) -> str:
    """Return what matters of a result: its figures that have goals."""
    parts = []
    for figure in measurement.figures:
        value = result.judged(figure)
        if value is not None and figure.goal is not None:
            mark = "[green]" if figure.met(value.median) else "[yellow]"
            parts.append(f"{figure.text} {mark}{_spread(value, _unit(figure))}[/] (goal {_goal(figure)})")
    return ", ".join(parts) or "no goal"


def _summary(measurements: Iterable[Measurement], old: dict[str, Result], new: dict[str, Result]) -> Iterator[str]:
    """Yield what the goals are about."""
    for name, found in (("Before", old), ("Now", new)):
        yield from _origin(name, list(found.values()))
    yield (
        "Medians, with the lowest and the highest round in brackets; `x` is ours divided by the best beside it, both"
        " of the same round.\n\n| what | figure | before | now | goal |\n|---|---|---|---|---|\n"
    )
    for measurement in measurements:
        before, now = old.get(measurement.name), new.get(measurement.name)
        what = f"{measurement.what} (`{measurement.name}`)"
        for figure in measurement.figures:
            if figure.goal is not None:
                cells = [_spread(result.judged(figure) if result else None, _unit(figure)) for result in (before, now)]
                yield f"| {what} | {figure.text} | {' | '.join(cells)} | {_judged_goal(figure, now)} |\n"
                what = ""


def _details(measurements: Iterable[Measurement], old: dict[str, Result], new: dict[str, Result]) -> Iterator[str]:
    for measurement in measurements:
        before, now = old.get(measurement.name), new.get(measurement.name)
        best = f" Beside it: {measurement.best}." if measurement.best else ""
        yield f"\n**{measurement.name}**: {measurement.what}.{best}\n\n{_HEAD}"
        for figure in measurement.figures:
            yield f"| {' | '.join(_row(figure, before, now))} |\n"


def _row(figure: Figure, before: Result | None, now: Result | None) -> Iterator[str]:
    latest = now or before
    yield figure.text
    yield _spread(latest.baseline(figure.name) if latest else None, figure.unit)
    for result in (before, now):
        yield _spread(result.ours(figure.name) if result else None, figure.unit)
    for result in (before, now):
        yield _spread(result.ratio(figure.name) if result else None, "")
    yield _judged_goal(figure, now)


def _judged_goal(figure: Figure, now: Result | None) -> str:
    """Return a goal, and whether it is met."""
    value = now.judged(figure) if now else None
    met = "" if value is None or figure.goal is None else ", met" if figure.met(value.median) else ", missed"
    return f"{_goal(figure)}{met}"


def _origin(name: str, found: Sequence[Result]) -> Iterator[str]:
    """Say where and with what a set of results was taken."""
    if not found:
        yield f"{name}: not measured yet.\n\n"
        return
    machine, versions = found[0].machine, found[0].versions
    loads = Spread.over([result.machine["load_before"] for result in found])
    assert loads is not None
    revisions = ", ".join(dict.fromkeys(result.revision for result in found))
    packages = ", ".join(f"{package} {version}" for package, version in versions.items())
    yield (
        f"{name}: revision {revisions}, {min(result.taken for result in found)[:10]}, {machine['cores']} cores of"
        f" {machine['cpu']}, {machine['memory_gib']:g} GiB, {machine['system']}, load before each measurement"
        f" {_spread(loads, '')}; {packages}.\n\n"
    )


def _goal(figure: Figure) -> str:
    if figure.goal is None:
        return "–"
    sign = "≤" if figure.less else "≥"
    return f"{sign} {figure.goal:g}{'' if figure.ratio else f' {figure.unit}'.rstrip()}{' x' if figure.ratio else ''}"


def _unit(figure: Figure) -> str:
    return "x" if figure.ratio else figure.unit


def _spread(value: Spread | None, unit: str) -> str:
    if value is None:
        return "–"
    median, lowest, highest = (_number(number) for number in value)
    reach = f" ({lowest}–{highest})" if lowest != highest else ""
    return f"{median}{f' {unit}' if unit else ''}{reach}"


def _number(value: float) -> str:
    return (
        f"{value:,.0f}"
        if abs(value) >= 100 or value == int(value)
        else f"{value:.2g}"
        if value < 10
        else f"{value:.3g}"
    )
