"""Everything that is installed is pinned by version and by hash, and nobody says where from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.rules.requirements import EXTRAS, FILES, asked_for, closure, entries, locked, read

HASH = re.compile(r"sha256:[0-9a-f]{64}")
each = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def faults(text: str) -> list[str]:
    """Return the entries that are no single version with its hashes."""
    found = []
    for line in entries(text):
        try:
            requirement, hashes = read(line)
        except ValueError:
            found.append(line)
            continue
        versions = [(one.operator, "*" in one.version) for one in requirement.specifier]
        if versions != [("==", False)] or requirement.url or not hashes or not all(map(HASH.fullmatch, hashes)):
            found.append(line)
    return found


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://example.org/simple",
        "--extra-index-url https://example.org/simple",
        "--find-links wheels",
        "-e .",
        "one @ https://example.org/one.whl --hash=sha256:" + "0" * 64,
        "one==1",
        "one==1 --hash=md5:" + "0" * 32,
        "one==1.* --hash=sha256:" + "0" * 64,
        "one>=1 --hash=sha256:" + "0" * 64,
        "one==1,!=2 --hash=sha256:" + "0" * 64,
    ],
)
def test_a_lock_that_leaves_something_open_is_found(line: str) -> None:
    assert faults("two==1 --hash=sha256:" + "0" * 64) == []
    assert faults(line) == [line]


@each
def test_every_entry_is_one_version_with_its_hashes_and_no_place(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(list(entries(text))) > 20
    assert faults(text) == []
    assert "://" not in text


def test_each_lock_is_of_known_extras() -> None:
    assert {file.stem for file in FILES} == EXTRAS.keys()


@each
def test_whatever_the_project_needs_is_locked_as_it_is_installed(file: Path) -> None:
    versions, needed = locked(file.stem), closure(asked_for(EXTRAS[file.stem]))
    assert needed.keys() <= versions.keys()
    assert {name: version for name, version in needed.items() if version not in (None, versions[name])} == {}


def test_a_package_has_one_version_in_all_locks() -> None:
    versions: dict[str, set[str]] = {}
    for file in FILES:
        for name, version in locked(file.stem).items():
            versions.setdefault(name, set()).add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}
