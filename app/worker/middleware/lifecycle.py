"""The life of a worker process: what it opens after the fork, how it says that it is ready, how it ends."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

import structlog
from dramatiq.middleware import Middleware

from app.core import threads
from app.core.role import this_process
from app.supervisor.parent_death import signal_at_parent_death
from app.supervisor.stops import handler_before
from app.worker.stopping import WORKER_STOPS

if TYPE_CHECKING:
    from types import FrameType

    from dramatiq import Broker, Worker

    from app.sweeping.lock import Locks
    from app.worker.readiness import Readiness

log = structlog.get_logger("worker")


class Lifecycle(Middleware):
    """Opens the worker's resources, turns SIGTERM into a drain, and keeps to the grace period."""

    def __init__(
        self, *, boot: Callable[[], None], end: Callable[[], None], locks: Locks, readiness: Readiness, grace: float
    ) -> None:
        self._boot = boot
        self._end = end
        self._locks = locks
        self._readiness = readiness
        self._grace = grace
        self._stops: queue.SimpleQueue[int] = queue.SimpleQueue()  # the one that a handler may put something into

    def after_process_boot(self, broker: Broker) -> None:
        """Open everything; whatever fails in here ends the process with status 1.

        Dramatiq swallows exceptions of this hook and reports ready, but for SystemExit.
        """
        _end_with_main_process()
        _leave_if_orphaned()
        try:
            self._boot()
            self._locks.start()
            self._drain_on_stops()
        except SystemExit:
            raise
        except Exception as error:  # noqa: BLE001 - a half-booted worker would sit there and do nothing
            log.error("boot failed", error=error)
            sys.exit(1)

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Report ready."""
        _leave_if_orphaned()
        self._readiness.booted = True
        log.info("worker ready", pid=os.getpid())

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Say goodbye; every lock has been given back by now."""
        self._end()
        log.info("shutdown complete", queues=sorted(this_process().queues))

    def _drain_on_stops(self) -> None:
        """Drain on the first stop and ignore the rest: Dramatiq would kill itself on the second one, and hosts that
        signal a whole process group send two. The grace period is what ends a drain that does not end.
        """  # noqa: D205
        inner = {number: handler_before(number) for number in WORKER_STOPS}

        def handler(number: int, _frame: FrameType | None) -> None:
            if not self._readiness.draining:
                self._readiness.draining = True
                self._stops.put(number)

        def drain() -> None:
            number = self._stops.get()
            log.info("shutdown signal received; draining scheduler", queues=sorted(this_process().queues))
            with suppress(SystemExit):  # it has heard one before we did, and takes ours for the second
                inner[signal.Signals(number)](number, None)  # Dramatiq's, which leaves its loop
            self._enforce_grace()

        threads.start("grace", drain)
        for number in WORKER_STOPS:
            signal.signal(number, handler)

    def _enforce_grace(self) -> None:
        # A batch is far shorter than this; a statement that still runs then is cut, so that its lock is released.
        time.sleep(self._grace * 0.6)
        for lease in self._locks.held:
            lease.cut()
        time.sleep(self._grace * 0.3)
        log.error("not ended within the grace period; leaving", held=len(self._locks.held))
        os._exit(1 if self._locks.held else 0)


def _by_fork_server() -> bool:
    """Return whether this process was started by a fork server, as is usual from Python 3.14 on.

    That is its parent for the system, and lives as long as any worker does. So the main process's death is known by its
    sentinel then, which siblings of a main process that forks would hold open for each other.
    """
    return multiprocessing.get_start_method() == "forkserver"


def _end_with_main_process() -> None:
    """Have this process signalled when the main process dies: Dramatiq takes that as a wish to stop."""
    parent = multiprocessing.parent_process()
    if parent is None or not _by_fork_server():
        signal_at_parent_death()
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threads.start("main-process", watch)


def _leave_if_orphaned() -> None:
    """Exit if the main process has died already: a worker that boots waits for ever to tell it so."""
    parent = multiprocessing.parent_process()
    if parent is not None and not (parent.is_alive() if _by_fork_server() else os.getppid() == parent.pid):
        os._exit(1)
