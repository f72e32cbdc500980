"""Whether a process lives."""

from __future__ import annotations

from contextlib import suppress

import psutil


def lives(pid: int) -> bool:
    """Return whether a process is there and has not ended; it may end, and be waited for, while it is looked at."""
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False
