"""Starting processes so that none is left behind, whatever happens to the one that starts them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

import psutil

T = TypeVar("T")
#: Servers and processes that may be started at the same time.
_THREADS = 4


class Launcher:
    """Threads that start things, and a process that ends what is left of them should this one be killed.

    Linux signals a child when the *thread* that started it ends: a fault's thread must start nothing itself. And a
    process that is stopped hears no signal but SIGKILL.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="launcher")

    def __enter__(self) -> Self:
        command = [sys.executable, "-I", __file__]
        self._broom = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()
        assert self._broom.stdin is not None
        self._broom.stdin.close()
        self._broom.wait()

    def launch(self, start: Callable[[], T]) -> T:
        """Call it in a thread that lives as long as the launcher, and return what it returns."""
        return self._threads.submit(start).result()

    def watch(self, pid: int) -> None:
        """Have a process and its descendants killed when this process is."""
        self._tell(f"+{pid}")

    def forget(self, pid: int) -> None:
        """It has ended: its number may be another's."""
        self._tell(f"-{pid}")

    def remove(self, directory: Path) -> None:
        """Have a directory removed when this process is killed."""
        self._tell(f"{directory}")

    def _tell(self, line: str) -> None:
        assert self._broom.stdin is not None
        self._broom.stdin.write(f"{line}\n".encode())
        self._broom.stdin.flush()


def sweep() -> None:
    """Read numbers of processes and directories until the end of the input; then end and remove what is left."""
    watched: set[int] = set()
    directories: list[str] = []
    for line in sys.stdin:
        word = line.strip()
        if word.startswith("+"):
            watched.add(int(word[1:]))
        elif word.startswith("-"):
            watched.discard(int(word[1:]))
        else:
            directories.append(word)
    groups: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            family = {process.pid, *(parent.pid for parent in process.parents())}
        except psutil.Error:
            continue
        if family & watched:
            groups.append(process)
    for process in groups:
        try:
            process.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(groups, timeout=10)
    for directory in directories if groups else ():
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sweep()
