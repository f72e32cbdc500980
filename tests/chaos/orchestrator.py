"""Starts a process again whose boot has failed, as an orchestrator does: a server was away in that moment.

A process that cannot reach a server when it boots says so in one line and ends with status 1: that is documented, and
is no death, as long as some fault was at a server or in between while it booted. All others that end are deaths.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

from tests.chaos.victims import kind_of

if TYPE_CHECKING:
    from tests.chaos.deployment import Deployment
    from tests.support.processes import Process

_LOOK_SECONDS = 0.3
#: Faults that keep a process from reaching a server.
_CUT_OFF = frozenset({"redis", "postgres", "network", "clock"})
#: What the log has of a boot that has failed, and of one that was done.
_FAILED, _UP = '"boot failed"', '"worker ready"'


class Orchestrator:
    """Looks from a thread, until its context ends."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        #: When each main process was started, by its pid, and how long its log was.
        self._started: dict[int, tuple[float, int]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="orchestrator")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def started(self, process: Process, log_size: int) -> None:
        """Take note of a process that was started now, behind so much of its log."""
        self._started[process.popen.pid] = time.monotonic(), log_size

    def boot_failed(self, process: Process) -> bool:
        """Return whether it ended in its boot, because of a fault."""
        since, size = self._started.get(process.popen.pid, (0.0, 0))
        said = process.log.read_bytes()[size:].decode(errors="replace")
        faults = list(self._deployment.log.faults)
        cut_off = any(fault.kind in _CUT_OFF and (fault.ended or since) >= since for fault in faults)
        return process.popen.poll() == 1 and _FAILED in said and _UP not in said and cut_off

    def _run(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            with self._deployment.lock:
                for name, process in list(self._deployment.processes.items()):
                    if process.popen.poll() is not None and self.boot_failed(process):
                        self._deployment.log.effect(f"boot of a {kind_of(name)} failed")
                        self._deployment.give_up(name)
                        self._deployment.start(name)
