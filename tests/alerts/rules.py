"""The alert rules of deploy/prometheus, read as text: their names, what each says, and shorter versions of them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
RUNBOOKS = ROOT / "docs" / "runbooks"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboard.json"
PREFIX = "SecretsBridge"
#: The package that has `prometheus` and `promtool`.
PACKAGE = "prometheus"

_ANNOTATIONS = re.compile(r"^ {8}annotations:\n(?: {10}.*\n)+", re.MULTILINE)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_FOR = re.compile(r"(?<=^ {8}for: )(\d+)([smhd])$", re.MULTILINE)
_RANGE = re.compile(r"(?<=\[)(\d+)([smhd])(?=\])")


def text() -> str:
    """Return the file."""
    return RULES.read_text(encoding="utf-8")


def alerts() -> dict[str, str]:
    """Return the text of each alert by its name; a name that stands twice would be lost, and fails."""
    parts = re.split(r"^ +- alert: (\w+)\n", text(), flags=re.MULTILINE)[1:]
    found = dict(zip(parts[::2], parts[1::2], strict=True))
    assert len(found) == len(parts) // 2
    return found


def without_annotations() -> str:
    """Return the rules as a test may state their results: by labels alone."""
    return _ANNOTATIONS.sub("", text())


def hurried(factor: int, shortest: int, shortest_range: int) -> str:
    """Return the rules with every `for` and every range that many times shorter, and the expressions as they are.

    A `for` is no shorter than `shortest`, a range than `shortest_range`, seconds.
    """

    def patience(match: re.Match[str]) -> str:
        return f"{max(_seconds(match) // factor, shortest)}s"

    def past(match: re.Match[str]) -> str:
        return f"{max(_seconds(match) // factor, shortest_range)}s"

    return _RANGE.sub(past, _FOR.sub(patience, text()))


def _seconds(match: re.Match[str]) -> int:
    return int(match[1]) * _UNITS[match[2]]
