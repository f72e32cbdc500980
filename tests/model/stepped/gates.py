"""A thread that stops at gates: it says which one it has come to, and goes on with the answer that it is given."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

from tests.support.waiting import HUNG


class Crash(BaseException):
    """The process ends here: no handler of errors sees it."""


class Gated:
    """A thread of one run."""

    def __init__(self, work: Callable[[Gated], None], changed: threading.Condition) -> None:
        """`changed` is notified whenever it has come to a gate, or to its end."""
        self._changed = changed
        self._answer: str | None = None
        self._crashed = False
        #: The gate that it waits at; None while it runs.
        self.gate: str | None = None
        self.ended = False
        self._thread = threading.Thread(target=self._run, args=[work], daemon=True)
        self._thread.start()

    @property
    def settled(self) -> bool:
        """Whether it waits at a gate, or has ended."""
        return self.ended or self.gate is not None

    def stop(self, gate: str) -> str:
        """Wait at a gate and return the answer. Raises Crash. Called by the thread."""
        if self._crashed:
            raise Crash
        with self._changed:
            self.gate, self._answer = gate, None
            self._changed.notify_all()
            while self._answer is None:
                self._changed.wait(HUNG)
            answer, self.gate = self._answer, None
        if answer == "crash":
            self._crashed = True
            raise Crash
        return answer

    def answer(self, word: str) -> None:
        """Have it go on from its gate."""
        with self._changed:
            assert self.gate is not None
            self._answer, self.gate = word, None
            self._changed.notify_all()

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(HUNG)
        assert not self._thread.is_alive()

    def _run(self, work: Callable[[Gated], None]) -> None:
        try:
            with suppress(Crash):
                work(self)
        finally:
            with self._changed:
                self.ended = True
                self._changed.notify_all()


def settle(threads: Iterable[Gated], changed: threading.Condition, blocked: Callable[[], int]) -> None:
    """Wait until each thread is at a gate, has ended, or waits in PostgreSQL for a lock that another one holds."""
    running = list(threads)
    while True:
        with changed:
            running = [thread for thread in running if not thread.settled]
            if not running:
                return
            changed.wait(0.05)
            running = [thread for thread in running if not thread.settled]
        if running and blocked() >= len(running) and not any(thread.settled for thread in running):
            return
