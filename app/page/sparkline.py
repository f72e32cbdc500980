"""A row of bars, one a run, as an inline SVG: what a column of numbers was in the last hour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from app.page.markup import Html, tag

#: Runs that are drawn, the newest at the right end.
MOST_BARS = 60
#: Pixels: a bar with its gap, the height of the bars, and the strip below them that has the marks of failures.
_STEP, _HEIGHT, _STRIP = 2, 18, 5


class Bar(NamedTuple):
    """One run."""

    value: float
    failed: bool


def sparkline(label: str, bars: Sequence[Bar], *, least_scale: float) -> Html:
    """Return the drawing. Its height stands for a large value, or for `least_scale`, so that trifles stay small.

    What is still larger, as the first run after an outage, is cut and drawn darker: it would flatten all others.
    A failed run has a mark of its own below the line: it is told by the place, not by colour alone.
    """
    shown = bars[-MOST_BARS:]
    width, height = MOST_BARS * _STEP, _HEIGHT + _STRIP
    scale = max(least_scale, _large(shown))
    first = MOST_BARS - len(shown)
    lines: list[str] = []
    peaks: list[str] = []
    marks: list[str] = []
    for number, bar in enumerate(shown, first):
        if bar.value > 0:
            length = max(1, round(min(1.0, bar.value / scale) * _HEIGHT))
            drawn = peaks if bar.value > scale else lines
            drawn.append(f"M{number * _STEP} {_HEIGHT - length}h1v{length}h-1z")
        if bar.failed:
            marks.append(f"M{number * _STEP} {_HEIGHT + 2}h2v3h-2z")
    return tag(
        "svg",
        tag("path", class_="axis", d=f"M{first * _STEP} {_HEIGHT}H{width}v1H{first * _STEP}z") if shown else None,
        tag("path", class_="bars", d="".join(lines)) if lines else None,
        tag("path", class_="peaks", d="".join(peaks)) if peaks else None,
        tag("path", class_="marks", d="".join(marks)) if marks else None,
        class_="spark",
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
    )


def _large(bars: Sequence[Bar]) -> float:
    """Return a value that nine tenths of those that are not zero do not exceed."""
    values = sorted(bar.value for bar in bars if bar.value > 0)
    return values[(len(values) - 1) * 9 // 10] if values else 0.0
