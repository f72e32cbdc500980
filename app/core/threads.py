"""Background threads that end their process when they fail: one that died in silence is missed too late."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import structlog

from app.core.errors import describe

log = structlog.get_logger("worker")


def start(name: str, target: Callable[..., object], *args: object) -> threading.Thread:
    """Start `target` in a daemon thread and return that.

    Whatever it raises ends the process with status 1, after one ERROR line with the exception's name. Raises
    RuntimeError when the system has no thread left.
    """

    def run() -> None:
        try:
            target(*args)
        except BaseException as error:  # noqa: BLE001 - nobody else would ever see it
            try:
                log.error("a background thread failed; ending this process", thread=name, error=describe(error).error)
            finally:
                os._exit(1)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
