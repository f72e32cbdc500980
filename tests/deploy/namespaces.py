"""File systems of our own: a mount namespace in which overlays of this machine's files can be built and thrown away."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

from app.supervisor.parent_death import signal_at_parent_death
from tests.support.waiting import HUNG_PROCESS

_HOLD = "mount -t tmpfs -o mode=755 tmpfs {place} && echo up && exec sleep infinity"


class MountNamespace:
    """A mount namespace, kept by a process that sleeps in it, with a file system in memory at `place`."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("unshare"):
            pytest.skip("needs root on Linux, to lay file systems over this machine's and to become another user")
        words = ["unshare", "--mount", "--propagation", "private"]
        self._holder = subprocess.Popen(
            [*words, "sh", "-c", _HOLD.format(place=self.place)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=signal_at_parent_death,  # noqa: PLW1509 - only prctl is called
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"up\n":
            self.__exit__()
            pytest.skip("this machine does not let us mount in a namespace of our own")
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._holder.pid, signal.SIGKILL)
        self._holder.wait()
        if self._holder.stdout is not None:
            self._holder.stdout.close()

    @property
    def enter(self) -> list[str]:
        """The beginning of a command that runs the rest in here."""
        return [shutil.which("nsenter") or "nsenter", "--target", str(self._holder.pid), "--mount"]

    def run(self, words: Sequence[str | Path], env: Mapping[str, str] | None = None) -> str:
        """Run a command to its end and return what it printed; its failure is the test's."""
        done = subprocess.run(
            [*self.enter, *map(str, words)],
            env=env,
            capture_output=True,
            text=True,
            timeout=HUNG_PROCESS,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout

    def seen(self, path: Path) -> Path:
        """Return where a path of this namespace is seen from outside."""
        return Path(f"/proc/{self._holder.pid}/root") / path.relative_to("/")

    def overlay(self, lowers: Sequence[Path], work: Path, at: Path) -> Path:
        """Mount at `at` what is in `lowers`, the first one on top; return where changes go, which is below `work`."""
        upper, scratch = work / "upper", work / "work"
        self.run(["mkdir", "-p", upper, scratch, at])
        options = f"lowerdir={':'.join(map(str, lowers))},upperdir={upper},workdir={scratch}"
        self.run(["mount", "-t", "overlay", "overlay", "-o", options, at])
        return upper
