"""Plots as SVG, drawn by hand: medians as dots, their spread as lines, before and now."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

from bench.measurement import Figure, Measurement
from bench.results import Result, Spread

_WIDTH, _LEFT, _ROW, _TOP = 920, 430, 20, 58
_COLOURS = {"before": "#9a9a9a", "now": "#1f6fb2"}
_STYLE = "text{font:12px sans-serif;fill:#222}.dim{fill:#666;font-size:11px}.head{font-weight:bold;font-size:14px}"


class Dot(NamedTuple):
    """One value of a row, with its spread; of the set `kind`."""

    kind: str
    value: Spread


class Row(NamedTuple):
    """One row of a plot."""

    text: str
    dots: Sequence[Dot]


def draw(measurements: Sequence[Measurement], old: Mapping[str, Result], new: Mapping[str, Result]) -> dict[str, str]:
    """Return the plots by their file names."""
    sets = {"before": old, "now": new}
    scale = [measurement for measurement in measurements if measurement.name.startswith("scale-")]
    return {
        "goals.svg": plot("How far each goal is met: 1 is the goal, more is better", _goals(measurements, sets)),
        "network.svg": plot(
            "Rows a second of a sweep, divided by one DELETE, over a network",
            _rates(measurements, sets, "sweep-network"),
        ),
        "scale.svg": plot("Rate of several, divided by the rate of one", _rates(scale, sets, "scale-")),
    }


def _goals(measurements: Sequence[Measurement], sets: Mapping[str, Mapping[str, Result]]) -> Iterator[Row]:
    for measurement in measurements:
        for figure in measurement.figures:
            if figure.goal:
                dots = list(_dots(measurement, figure, sets))
                yield Row(f"{measurement.name}: {figure.text}", [Dot(kind, _over(figure, got)) for kind, got in dots])


def _rates(measurements: Sequence[Measurement], sets: Mapping[str, Mapping[str, Result]], names: str) -> Iterator[Row]:
    for measurement in measurements:
        figure = measurement.figures[0]
        if measurement.name.startswith(names) and figure.ratio:
            yield Row(f"{measurement.name}: {figure.text}", list(_dots(measurement, figure, sets)))


def _dots(measurement: Measurement, figure: Figure, sets: Mapping[str, Mapping[str, Result]]) -> Iterator[Dot]:
    for kind, found in sets.items():
        value = found[measurement.name].judged(figure) if measurement.name in found else None
        if value is not None and value.lowest > 0:
            yield Dot(kind, value)


def _over(figure: Figure, value: Spread) -> Spread:
    """Return by how many times a goal is met."""
    assert figure.goal
    if figure.less:
        return Spread(figure.goal / value.median, figure.goal / value.highest, figure.goal / value.lowest)
    return Spread(*(number / figure.goal for number in value))


def _power(power: int) -> str:
    return f"{2**power}" if power >= 0 else f"1/{2**-power}"


def plot(title: str, rows: Iterator[Row]) -> str:
    """Return a drawing of rows on one logarithmic axis around 1."""
    drawn = [row for row in rows if row.dots]
    values = [number for row in drawn for dot in row.dots for number in dot.value] or [1.0]
    low, high = math.floor(math.log2(min(*values, 0.5))), math.ceil(math.log2(max(*values, 2.0)))
    height = _TOP + _ROW * len(drawn) + 30

    def x(value: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - 30) * (math.log2(value) - low) / (high - low), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        f'<text class="head" x="12" y="22">{escape(title)}</text>',
    ]
    for number, (kind, colour) in enumerate(_COLOURS.items()):
        parts.append(f'<circle cx="{18 + 80 * number}" cy="40" r="4" fill="{colour}"/>')
        parts.append(f'<text class="dim" x="{26 + 80 * number}" y="44">{kind}</text>')
    for power in range(low, high + 1, max(1, (high - low) // 8)):
        at = x(2.0**power)
        parts.append(f'<line x1="{at}" y1="{_TOP - 8}" x2="{at}" y2="{height - 26}" stroke="#e4e4e4"/>')
        parts.append(f'<text class="dim" x="{at}" y="{height - 10}" text-anchor="middle">{_power(power)}</text>')
    parts.append(f'<line x1="{x(1)}" y1="{_TOP - 8}" x2="{x(1)}" y2="{height - 26}" stroke="#c33"/>')
    for number, row in enumerate(drawn):
        y = _TOP + _ROW * number + 8
        parts.append(f'<text x="{_LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(row.text)}</text>')
        for dot in row.dots:
            at, colour = y + (3 if dot.kind == "now" else -3), _COLOURS[dot.kind]
            line = f'x1="{x(dot.value.lowest)}" y1="{at}" x2="{x(dot.value.highest)}" y2="{at}" stroke="{colour}"'
            parts.append(f'<line {line} stroke-width="2"/>')
            parts.append(f'<circle cx="{x(dot.value.median)}" cy="{at}" r="3.5" fill="{colour}"/>')
    return "\n".join([*parts, "</svg>", ""])
