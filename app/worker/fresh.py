"""A result that is at most so old, made by one thread at a time, however many ask for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from app.core import threads

T = TypeVar("T")


class Fresh(Generic[T]):
    """The newest result of a function."""

    def __init__(self, name: str, make: Callable[[], T], seconds: float) -> None:
        self._name = name
        self._make = make
        self._seconds = seconds
        self._guard = threading.Lock()
        self._future: Future[T] | None = None
        self._stale_at = 0.0

    def future(self) -> Future[T]:
        """Return the result that is under way, or the last one if it is not too old, or that of a new thread.

        It has the exception of the function, or RuntimeError when the system has no thread left. A function that
        hangs is never called twice.
        """
        with self._guard:
            if self._future is None or (self._future.done() and time.monotonic() >= self._stale_at):
                self._future = Future()
                try:
                    threads.start(self._name, self._run, self._future)
                except RuntimeError as error:
                    self._end()
                    self._future.set_exception(error)
            return self._future

    def _run(self, future: Future[T]) -> None:
        try:
            result = self._make()
        except Exception as error:  # noqa: BLE001 - it is the asker's
            self._end()
            future.set_exception(error)
        else:
            self._end()
            future.set_result(result)

    def _end(self) -> None:
        self._stale_at = time.monotonic() + self._seconds  # before the result is there: who sees it reads this
