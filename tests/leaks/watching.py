"""Looks over a deployment's shoulder while it runs: what is there for a moment only leaks too."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import psycopg

from tests.leaks.evidence import Evidence

#: Seconds between two looks.
_OFTEN = 0.1


class Watch:
    """A thread for each of what is watched, until the body is over."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._monitor: socket.socket | None = None
        self.failed: list[BaseException] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._monitor is not None:
            with suppress(OSError):
                self._monitor.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        if self._monitor is not None:
            self._monitor.close()

    def processes(self, roots: Callable[[], list[int]]) -> None:
        """Watch the command lines of these processes and all below them, and what Apprise's gets of an environment."""
        self._start(lambda: self._often(lambda: self._look_at_processes(roots())))

    def statements(self, url: str, role: str) -> None:
        """Watch what somebody else sees of a role's sessions."""

        def look(connection: psycopg.Connection[tuple[object, ...]]) -> None:
            query = "SELECT query FROM pg_stat_activity WHERE usename = %s AND query <> ''"
            for (text,) in connection.execute(query, [role]):
                self._evidence.add("statements in pg_stat_activity", str(text))

        def watch() -> None:
            with psycopg.connect(url, autocommit=True) as connection:
                self._often(lambda: look(connection))

        self._start(watch)

    def redis(self, port: int) -> None:
        """Watch every command that Redis gets."""
        self._monitor = monitor = socket.create_connection(("127.0.0.1", port))
        monitor.sendall(b"MONITOR\r\n")
        with suppress(OSError):
            assert monitor.recv(5) == b"+OK\r\n"

        def watch() -> None:
            with monitor.makefile("rb") as lines:
                for line in lines:
                    self._evidence.add("commands to Redis", line.decode(errors="replace").partition("] ")[2])

        self._start(watch)

    def _often(self, look: Callable[[], None]) -> None:
        while not self._over.wait(_OFTEN):
            look()

    def _start(self, watch: Callable[[], None]) -> None:
        def run() -> None:
            try:
                watch()
            except BaseException as error:  # noqa: BLE001 - a watch that slept is no evidence
                self.failed.append(error)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def _look_at_processes(self, pids: list[int]) -> None:
        for pid in pids:
            with suppress(OSError):
                self._look_at(pid)
                children = (task.read_text().split() for task in Path(f"/proc/{pid}/task").glob("*/children"))
                self._look_at_processes([int(child) for found in children for child in found])

    def _look_at(self, pid: int) -> None:
        line = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").replace("\0", " ")
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace")
        self._evidence.add("command lines", f"{name} {line}")
        if "apprise_child" in line:
            environ = Path(f"/proc/{pid}/environ").read_text(encoding="utf-8", errors="replace")
            self._evidence.add("environment of Apprise's process", environ.replace("\0", "\n"))
