"""`make sbom`: all that runs in the image, by name, version, hash and purl, and alike each time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app import __version__
from tests.support.packages import missing
from tests.support.processes import ROOT

LOCKED = re.compile(r"^([\w.-]+)==(\S+?)(?: ;.*)? \\\n((?:    --hash=\S+(?: \\)?\n)+)", re.MULTILINE)


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Run the target two times, with the environment that the tests run in, which it is not to make anew."""
    venv = Path(sys.executable).parents[1]
    if not (venv / "bin" / "cyclonedx-py").exists():
        missing("cyclonedx-bom")
    made = []
    for _ in range(2):
        path = tmp_path_factory.mktemp("sbom") / "sbom.json"
        words = ["make", "--silent", f"--old-file={venv}/.check", f"VENV={venv}", f"SBOM={path}", "sbom"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert list(path.parent.iterdir()) == [path]
        made.append(path.read_bytes())
    return made


def test_every_locked_package_is_listed_with_its_version_hashes_and_purl(twice: list[bytes]) -> None:
    text = (ROOT / "requirements" / "run.txt").read_text(encoding="utf-8")
    locked = {
        (name, version): set(re.findall(r"sha256:([0-9a-f]{64})", hashes))
        for name, version, hashes in LOCKED.findall(text)
    }
    assert len(locked) == text.count("==") - text.count(" == ")
    listed = json.loads(twice[0])
    assert listed["bomFormat"] == "CycloneDX"
    assert listed["metadata"]["component"]["version"] == __version__
    assert {(one["name"], one["version"]) for one in listed["components"]} == set(locked)
    for one in listed["components"]:
        assert one["purl"] == f"pkg:pypi/{one['name']}@{one['version']}"
        hashes = {value["content"] for where in one["externalReferences"] for value in where["hashes"]}
        assert hashes == locked[one["name"], one["version"]]


def test_the_same_lock_makes_the_same_list(twice: list[bytes]) -> None:
    assert twice[0] == twice[1]
