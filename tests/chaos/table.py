"""`python -m tests.chaos.table DIR`: writes the table of docs/reliability.md from the rounds' documents in DIR."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.support.processes import ROOT

PAGE = ROOT / "docs" / "reliability.md"
BEGIN = "<!-- the table of tests.chaos.table begins -->"
END = "<!-- the table of tests.chaos.table ends -->"
_COLUMNS = {
    "effects": "effects",
    "slots": "slots",
    "runs": "runs",
    "duplicates": "duplicates",
    "token_regressions": "token regressions",
    "uncovered": "uncovered",
    "early_deletes": "early deletes",
    "lost": "lost",
    "doubled": "doubled",
}


def table(documents: Iterable[Mapping[str, Any]]) -> str:
    """Return the Markdown: a row a round, in the order of the rounds, and what they were played on."""
    found = list(documents)
    head = ["round", "command", *_COLUMNS.values(), "worst recovery", "verdict"]
    left = {"round", "command", "verdict"}
    rows = [f"| {' | '.join(head)} |", f"|{'|'.join('---' if name in left else '---:' for name in head)}|"]
    rows += [f"| {' | '.join(_row(document))} |" for document in found]
    played_on = dict.fromkeys(_versions(document["versions"]) for document in found)
    return "\n".join([*rows, "", *(f"Played on {versions}." for versions in played_on)])


def _row(document: Mapping[str, Any]) -> list[str]:
    figures = document["figures"]
    numbers = [f"{figures[name]:,}" for name in _COLUMNS]
    verdict = "passed" if document["passed"] else "**failed**"
    worst = f"{figures['worst_recovery']:.1f} s"
    return [f"{document['round']}: {document['text']}", f"`{document['command']}`", *numbers, worst, verdict]


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def put(page: str, text: str) -> str:
    """Return the page with this between its two marks. Raises ValueError when it has not both, in their order."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page needs the two lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def main(words: list[str]) -> int:
    """Write the page and return the exit status."""
    if not 1 <= len(words) <= 2:
        print("usage: python -m tests.chaos.table DIR [PAGE]", file=sys.stderr)
        return 2
    paths = sorted(Path(words[0]).glob("*.json"))
    page = Path(words[1]) if len(words) > 1 else PAGE
    if not paths:
        print(f"error: no round was written to {words[0]}; `make chaos OUT=DIR` does that", file=sys.stderr)
        return 1
    from tests.chaos.rounds import ROUNDS  # noqa: PLC0415 - it loads everything

    order = {name: number for number, name in enumerate(ROUNDS)}
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    documents.sort(key=lambda document: order.get(document["round"], len(order)))
    try:
        page.write_text(put(page.read_text(encoding="utf-8"), table(documents)), encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"error: {page.name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
