"""What a round came to: lines for a terminal, and one JSON document from which `table` makes the page's table."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.chaos.playing import Played
from tests.chaos.reporting.figures import figures, kinds

#: Findings of one check that are shown, and columns of a line.
MOST, WIDTH = 10, 100


def lines(played: Played) -> list[str]:
    """Return the figures of a round and what was found, no line wider than a terminal."""
    return [line for text in _texts(played) for line in _wrapped(text)]


def _texts(played: Played) -> Iterator[str]:
    found = figures(played)
    outcomes = Counter(run["outcome"] for run in played.history.runs)
    yield f"slots: {found.slots:,} in {_named(outcomes)}; {found.covered:,} of them covered"
    yield f"rows: {len(played.history.changes):,} changes committed"
    yield f"notifications: {found.events:,} events, {found.received:,} received, {found.repeats:,} of them repeats"
    yield f"effects: {_named(kinds(played.effects)) or 'none'}"
    after = f" after {found.worst_after}" if found.worst_after else ""
    yield f"worst recovery: {found.worst_recovery:.1f} s, {found.worst_of}{after}" if found.worst_of else "no recovery"
    yield (
        f"duplicates {found.duplicates}, token regressions {found.token_regressions}, uncovered {found.uncovered}, "
        f"early deletes {found.early_deletes}, lost {found.lost}, doubled {found.doubled}, other {found.other}"
    )
    for text in played.too_few:
        yield f"TOO FEW {text}"
    for check, number in Counter(violation.check for violation in played.violations).items():
        yield f"FOUND by {check}: {number}"
        for text in [violation.text for violation in played.violations if violation.check == check][:MOST]:
            yield f"  {text}"
    yield "passed" if played.passed else f"FAILED; once more: {command(played)}"


def _wrapped(text: str) -> list[str]:
    deep = len(text) - len(text.lstrip()) + 2
    return textwrap.wrap(
        text.lstrip(), WIDTH, initial_indent=" " * deep, subsequent_indent=" " * (deep + 2), break_on_hyphens=False
    )


def _named(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in sorted(numbers.items()))


def command(played: Played) -> str:
    """Return what plays this round once more."""
    return f"make chaos SEED={played.seed} ROUND={played.name} SECONDS={played.seconds:.0f}"


def document(played: Played) -> dict[str, Any]:
    """Return all that is to be known of a round later, but for the history itself."""
    return {
        "round": played.name,
        "text": played.text,
        "seed": played.seed,
        "seconds": played.seconds,
        "command": command(played),
        "passed": played.passed,
        "figures": figures(played).as_json(),
        "outcomes": Counter(run["outcome"] for run in played.history.runs),
        "effects": dict(sorted(played.effects.items())),
        "too_few": list(played.too_few),
        "violations": [violation._asdict() for violation in played.violations],
        "versions": dict(played.versions),
    }


def write(directory: Path, played: Played) -> Path:
    """Write a round's document; a later one of the same round takes its place."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{played.name}.json"
    path.write_text(json.dumps(document(played), indent=2) + "\n", encoding="utf-8")
    return path
