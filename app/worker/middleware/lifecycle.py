"""The life of a worker process: what it opens after the fork, how it says that it is ready, how it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import structlog
from dramatiq.middleware import Middleware

from app.supervisor.parent_death import signal_at_parent_death

if TYPE_CHECKING:
    from types import FrameType

    from dramatiq import Broker, Worker

    from app.sweeping.lock import Locks
    from app.worker.probes import Readiness

log = structlog.get_logger("worker")


class Lifecycle(Middleware):
    """Opens the worker's resources, turns SIGTERM into a drain, and keeps to the grace period."""

    def __init__(self, *, boot: Callable[[], None], locks: Locks, readiness: Readiness, grace: float) -> None:
        self._boot = boot
        self._locks = locks
        self._readiness = readiness
        self._grace = grace
        self._signalled = threading.Event()

    def after_process_boot(self, broker: Broker) -> None:
        """Open everything; whatever fails in here ends the process with status 1.

        Dramatiq swallows exceptions of this hook and reports ready, but for SystemExit.
        """
        _die_with_parent()
        self._wrap_signals()
        try:
            self._boot()
            self._locks.start()
        except SystemExit:
            raise
        except Exception as error:  # noqa: BLE001 - a half-booted worker would sit there and do nothing
            log.error("boot failed", error=error)
            sys.exit(1)

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Report ready."""
        self._readiness.booted = True
        log.info("worker ready", pid=os.getpid())

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Say goodbye; every lock has been given back by now."""
        log.info("shutdown complete")

    def _wrap_signals(self) -> None:
        """Drain on the first signal and ignore the rest: Dramatiq would kill itself on the second one, and hosts
        that signal a whole process group send two. The grace period is what ends a drain that does not end.
        """  # noqa: D205
        threading.Thread(target=self._enforce_grace, name="grace", daemon=True).start()
        for number in (signal.SIGTERM, signal.SIGHUP):
            inner = signal.getsignal(number)

            def handler(signum: int, frame: FrameType | None, inner: Any = inner) -> None:
                if self._readiness.draining:
                    return
                self._readiness.draining = True
                self._signalled.set()
                if callable(inner):
                    inner(signum, frame)

            signal.signal(number, handler)

    def _enforce_grace(self) -> None:
        self._signalled.wait()
        log.info("shutdown signal received; draining scheduler")
        # A batch is far shorter than this; a statement that still runs then is cut, so that its lock is released.
        time.sleep(self._grace * 0.6)
        for lease in self._locks.held:
            lease.cut()
        time.sleep(self._grace * 0.3)
        log.error("not ended within the grace period; leaving", held=len(self._locks.held))
        os._exit(1 if self._locks.held else 0)


def _die_with_parent() -> None:
    """End when the main process dies, so that a killed one leaves no orphans."""
    signal_at_parent_death()
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it died before
        os.kill(os.getpid(), signal.SIGTERM)
