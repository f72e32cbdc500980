"""The verdicts of a soak: a table for people, a line of JSON a series."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.soak.judging import Judgement, Point, judge

_WORST_FIRST = ("grows", "settling", "within noise", "too short", "flat")
_HEAD = f"{'series':<48} {'unit':<7} {'level':>10} {'a day':>10} {'at least':>10} {'at most':>10} {'limit':>9}  verdict"


def judged(series: Mapping[str, Sequence[Point]], units: Mapping[str, str]) -> dict[str, Judgement]:
    """Judge each series."""
    return {name: judge(points, units[name]) for name, points in series.items()}


def table(judgements: Mapping[str, Judgement], units: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of a table, what grows first."""
    yield _HEAD
    for name in sorted(judgements, key=lambda name: _WORST_FIRST.index(judgements[name].verdict)):
        verdict, level, *numbers = judgements[name]
        columns = (f"{level:10.2f}", *(f"{number:10.2f}" for number in numbers[:-1]), f"{numbers[-1]:9.2f}")
        yield f"{name:<48} {units[name]:<7} {' '.join(columns)}  {verdict}"


def summary(judgements: Mapping[str, Judgement], problems: Iterable[str]) -> Iterator[str]:
    """Yield how many series ended how, and what is wrong."""
    verdicts = [judgement.verdict for judgement in judgements.values()]
    yield f"{len(verdicts)} series: " + ", ".join(
        f"{verdicts.count(verdict)} {verdict}" for verdict in _WORST_FIRST if verdict in verdicts
    )
    yield from (f"wrong: {problem}" for problem in problems)


def write(out: Path, judgements: Mapping[str, Judgement], units: Mapping[str, str], problems: Sequence[str]) -> None:
    """Write the table and the lines of JSON."""
    lines = [*table(judgements, units), "", *summary(judgements, problems)]
    (out / "table.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = [{"series": name, "unit": units[name], **found._asdict()} for name, found in judgements.items()]
    (out / "verdicts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
