"""The commands of an operator, as real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple, Self

from tests.leaks.evidence import Evidence
from tests.support.processes import ROOT

#: Commands that run side by side.
_AT_ONCE = 3


class Ran(NamedTuple):
    """A command that has ended."""

    status: int
    output: str


class Commands:
    """Runs commands and keeps what they print."""

    def __init__(self, env: Mapping[str, str], directory: Path, evidence: Evidence) -> None:
        self._env = dict(env)
        self._directory = directory
        self._evidence = evidence
        self._runs = 0
        self._free: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
        self._warm: list[subprocess.Popen[str]] = []
        self._pool = ThreadPoolExecutor(_AT_ONCE)

    def __enter__(self) -> Self:
        words = [sys.executable, "-m", "tests.leaks.warm"]
        for _ in range(_AT_ONCE):
            warm = subprocess.Popen(
                words, cwd=ROOT, env=self._env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            self._warm.append(warm)
            self._free.put(warm)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for warm in self._warm:
            warm.communicate()

    @property
    def pids(self) -> list[int]:
        """The processes that run them."""
        return [warm.pid for warm in self._warm]

    def __call__(self, *words: str, **variables: str) -> Ran:
        """Run a command and return what came of it."""
        return self.begin(*words, **variables).result()

    def begin(self, *words: str, **variables: str) -> Future[Ran]:
        """Run a command, when there is room."""
        self._runs += 1
        return self._pool.submit(self._run, words, variables, self._directory / f"command-{self._runs}.out")

    def _run(self, words: tuple[str, ...], variables: Mapping[str, str], out: Path) -> Ran:
        warm = self._free.get()
        try:
            asked = {"argv": ["sb-worker", *words], "env": {**self._env, **variables}, "out": str(out)}
            assert warm.stdin is not None
            assert warm.stdout is not None
            warm.stdin.write(json.dumps(asked) + "\n")
            warm.stdin.flush()
            status = int(warm.stdout.readline())
        finally:
            self._free.put(warm)
        output = out.read_text(encoding="utf-8", errors="replace")
        self._evidence.add(f"output of sb-worker {' '.join(word for word in words[:2] if word[0] != '-')}", output)
        return Ran(status, output)
