"""Waiting for what a test needs to happen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

#: Seconds after which a test calls something hung: what it waits for, and what it has started. Guards, not promises.
HUNG, HUNG_PROCESS = 60.0, 120.0


class LoopClock:
    """The clock of all event loops, which a test sets ahead once what has to be in time is done.

    So a deadline that is meant to be met by one thing, and not by another, is as long as may be.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead = 0.0
        monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda _loop: time.monotonic() + self._ahead)

    def pass_by(self, seconds: float) -> None:
        """Have so much time be over; a loop that sleeps sees it when it wakes."""
        self._ahead += seconds


def eventually(condition: Callable[[], Any], seconds: float = HUNG) -> Any:
    """Wait until the condition returns something true, and return that; fail after the deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
    return value
