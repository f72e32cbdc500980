"""The tables of docs/go-settings.md, which tests go through row by row."""

from __future__ import annotations

from tests.support.processes import ROOT

_PAGE = ROOT / "docs" / "go-settings.md"


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading, without the line of its columns."""
    section = _PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[1:]]
