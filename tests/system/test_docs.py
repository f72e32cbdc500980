"""The docs name only what exists, and stay short, ordered and dated."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from app import __version__
from app.cli.main import main

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
#: The newcomer's screen and a half.
MOST_WORDS = 1_000
LINK = re.compile(r"\]\(([^()\s]+)\)")
PATH = re.compile(r"(?<![\w/.-])(?:app|actors|sinks|tests|bench)/[\w/]+\.py\b")
MODULE = re.compile(r"(?<![\w./-])(?:app|actors|sinks|tests|bench)(?:\.\w+)+")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(path: Path) -> set[str]:
    """Return the fragments of a page's headings, as forges make them."""
    headings = HEADING.findall(path.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def exists(module: str) -> bool:
    """Return whether there is such a module; none but its packages is imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # nor the package that it would be in
        return False


def broken_links(page: Path) -> Iterator[str]:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        target, _, fragment = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (fragment and fragment not in anchors(path)):
            yield link


def test_the_readme_stays_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= MOST_WORDS


@pytest.mark.parametrize("page", DOCS, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


@pytest.mark.parametrize("page", [page for page in DOCS if page.name != "CHANGELOG.md"], ids=name)
def test_every_module_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [path for path in PATH.findall(text) if not (ROOT / path).is_file()] == []
    assert [module for module in MODULE.findall(text) if not exists(module)] == []


@pytest.mark.parametrize("page", [README, ROOT / "CONTRIBUTING.md"], ids=name)
def test_every_command_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE)) <= set(targets)
    assert set(re.findall(r"(?:^|`)sb-worker ([a-z]+)", text, re.MULTILINE)) <= set(main.commands)


def test_the_tour_has_ten_stops_and_each_names_a_function_of_its_file() -> None:
    stops = re.findall(
        r"^### \d+\. .+: `(?:\w+\.)?(\w+)` in `(.+)`$", (ROOT / "docs/tour.md").read_text("utf-8"), re.MULTILINE
    )
    assert len(stops) == 10
    for function, path in stops:
        assert re.search(rf"def {function}\(", (ROOT / path).read_text(encoding="utf-8")), function


@pytest.mark.parametrize("page", DECISIONS, ids=name)
def test_every_decision_has_a_status_and_a_date(page: Path) -> None:
    number, text = int(page.name[:4]), page.read_text(encoding="utf-8")
    assert text.startswith(f"# {number}. ")
    assert re.search(r"^Status: (accepted|superseded by \S.*)$", text, re.MULTILINE)
    assert re.search(r"^Date: \d{4}-\d{2}-\d{2}$", text, re.MULTILINE)


def test_decisions_are_numbered_without_a_gap() -> None:
    assert [int(page.name[:4]) for page in DECISIONS] == list(range(1, len(DECISIONS) + 1))


def test_the_glossary_is_alphabetical() -> None:
    terms = re.findall(r"^- \*\*(.+?)\*\*: ", (ROOT / "docs/glossary.md").read_text("utf-8"), re.MULTILINE)
    assert terms == sorted(terms, key=str.casefold)
    assert len(terms) >= 25


def test_the_changelog_has_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(.+?)\](?: - \d{4}-\d{2}-\d{2})?$", text, re.MULTILINE)
    assert versions[:2] == ["Unreleased", __version__]
