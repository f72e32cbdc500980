"""Waiting for what a test needs to happen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

#: Seconds after which a test calls something hung: what it waits for, and what it has started. Guards, not promises.
HUNG, HUNG_PROCESS = 60.0, 120.0


def eventually(condition: Callable[[], Any], seconds: float = HUNG) -> Any:
    """Wait until the condition returns something true, and return that; fail after the deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
    return value
