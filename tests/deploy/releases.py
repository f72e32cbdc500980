"""This release and the one before, as two checkouts whose replicas run side by side."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.demo.ports import reserved_port
from tests.support.processes import BIN, ROOT, Process

#: The newest commit of the release before this one, whose schema is a version behind. To be moved on with each release.
BEFORE = "fee5062"


@dataclass(frozen=True)
class Checkout:
    """One release's sources."""

    name: str
    root: Path

    def words(self, *words: str) -> list[str]:
        """Return a command that runs one of its programs, and not the installed release's."""
        env = shutil.which("env") or "env"
        here = (f"PYTHONPATH={self.root}", *(("PYTHONDONTWRITEBYTECODE=",) if self.root != ROOT else ()))
        return [env, "-C", str(self.root), *here, str(BIN / words[0]), *words[1:]]

    def schema(self) -> int:
        """Return the version of our schema that it brings."""
        code = "from app.storage.migrations import VERSION; print(VERSION)"
        words = self.words(sys.executable, "-c", code)
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def this_release() -> Checkout:
    """Return the sources that the tests are of."""
    return Checkout("new", ROOT)


def release_before(place: Path) -> Checkout:
    """Unpack the release before into `place`; skip the test where the history does not have it."""
    words = ["git", "-C", str(ROOT), "archive", "--format=tar", BEFORE]
    if not shutil.which("git") or not shutil.which("tar"):
        pytest.skip("needs git and tar, for the release before")
    done = subprocess.run(words, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the history of this repository: commit {BEFORE} is not in this clone")
    place.mkdir()
    subprocess.run(["tar", "--extract", "--directory", str(place)], input=done.stdout, check=True)
    return Checkout("old", place)


class Replicas:
    """Replicas of either release, all on the same servers, each with a log of its own."""

    def __init__(self, env: Mapping[str, str], logs: Path, stack: ExitStack) -> None:
        self._env, self._logs, self._stack = env, logs, stack
        self.all: list[Process] = []

    def start(self, release: Checkout) -> Process:
        """Start a whole replica."""
        notifier = self._stack.enter_context(reserved_port())
        env = {**self._env, "SB_NOTIFICATION_LOCAL_ADDR": f"127.0.0.1:{notifier}"}
        log = self._logs / f"{len(self.all)}-{release.name}.log"
        replica = self._stack.enter_context(Process(release.words("sb-worker", "run"), env, log))
        self.all.append(replica)
        return replica
