"""A container of an image that was built here: what an engine would give its process, as far as this machine may."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.deploy.image import Built
from tests.deploy.memory import Limit
from tests.deploy.namespaces import MountNamespace
from tests.support.processes import Process
from tests.support.waiting import HUNG_PROCESS

#: Everything but /dev/shm is made read-only; /dev/shm is small and empty, as Docker's is.
_START = """
set -e
[ -z "$PROCS" ] || echo 0 > "$PROCS"
mount -t proc proc "$ROOT/proc"
mount -t tmpfs -o mode=1777,size=64m tmpfs "$ROOT/dev/shm"
for place in "$ROOT/tmp" "$ROOT/usr/local" "$ROOT"; do mount -o remount,bind,ro "$place"; done
exec chroot "$ROOT" "$@"
"""
_UNPRIVILEGED = ("--no-new-privs", "--inh-caps=-all", "--bounding-set=-all")


class Container(Process):
    """One container, with process 1 of its own, run as the image's user without any privilege.

    Process 1 is what the image says, or `words`.
    """

    def __init__(  # noqa: PLR0913 - what an engine is told
        self,
        space: MountNamespace,
        image: Built,
        env: Mapping[str, str],
        log: Path,
        *,
        limit: Limit | None,
        words: Sequence[str] = (),
    ) -> None:
        self._stage = image.stage
        self._own = {**image.stage.merged("ENV"), **env}
        words = words or [*self._stage.last("ENTRYPOINT").words, *self._stage.last("CMD").words]
        apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _START, "sh"]
        outside = {**os.environ, "ROOT": str(image.root), "PROCS": str(limit.procs) if limit else ""}
        super().__init__([*space.enter, *apart, *self._inside(words)], outside, log)

    def _inside(self, words: Sequence[str]) -> list[str]:
        user, _, group = self._stage.last("USER").text.partition(":")
        become = (f"--reuid={user}", f"--regid={group}", "--clear-groups", *_UNPRIVILEGED)
        variables = [f"{name}={value}" for name, value in self._own.items()]
        place = self._stage.last("WORKDIR").text
        return ["setpriv", *become, "env", "-i", "-C", place, *variables, *words]

    @property
    def main(self) -> psutil.Process:
        """Its process 1."""
        (child,) = psutil.Process(self.popen.pid).children()
        return child

    def execute(self, words: Sequence[str]) -> int:
        """Run a command in it, as `docker exec` does, and return its exit status."""
        enter = ["nsenter", "--target", str(self.main.pid), "--mount", "--pid", "--root"]
        done = subprocess.run(
            [*enter, *self._inside(words)], capture_output=True, text=True, timeout=HUNG_PROCESS, check=False
        )
        print(shlex.join(words), done.returncode, done.stdout, done.stderr)
        return done.returncode

    def stop(self) -> int:
        """Send process 1 a SIGTERM, as an engine does, and return the container's exit status."""
        self.main.terminate()
        return self.popen.wait(HUNG_PROCESS)
