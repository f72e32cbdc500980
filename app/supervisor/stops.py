"""Signals that ask a process to end, in the time before anything can be drained; the standard library only."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


#: What is done before a stop ends this process.
_last_things: list[Callable[[], object]] = []


def hold() -> None:
    """Let stops wait until `release`, also across an exec. Process 1 would lose those that it has no handler for."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)


def release() -> None:
    """Let stops through, those that have waited too. Children inherit what is held: so before any is started."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def end_at_once() -> None:
    """Have any stop end this process with status 0, from now on: for one that holds nothing that is to be given back.

    A thread waits for it. A handler would have to wait for the main thread to come back from whatever it calls, and an
    exception in it may be lost or may break what it lands in. No alarm that is set can come in between, as it
    could while Python puts everything away.
    """
    hold()
    threading.Thread(target=_end, name="stops", daemon=True).start()


def before_the_end(do: Callable[[], object]) -> None:
    """Have this done when a stop comes that ends the process at once; it should not take long."""
    _last_things.append(do)


def _end() -> None:
    # Every other signal is the main thread's, which it must wake from what it waits in.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    signal.sigwait(STOPS)
    for do in _last_things:
        with suppress(Exception):
            do()
    os._exit(0)


class EndAtOnce:
    """A handler that ends the process with status 0, in place of another one that is to be put back."""

    def __init__(self, number: signal.Signals) -> None:
        self.before: Any = signal.signal(number, self)

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        """End."""
        os._exit(0)


def handler_before(number: signal.Signals) -> Any:
    """Return the handler of a signal, looking through one that ends at once."""
    handler = signal.getsignal(number)
    return handler.before if isinstance(handler, EndAtOnce) else handler
