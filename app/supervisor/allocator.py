"""The C library's allocator: what it keeps of memory that is not used any more."""

from __future__ import annotations

import ctypes
import sys

#: glibc's names for parameters, and its own value for both to begin with, which it raises with what it is asked for.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_BYTES = 128 * 1024
_MALLOPT = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None


def give_back_large_blocks() -> None:
    """Have blocks of 128 KiB and more go back to the system when they are freed, in this process and its forks.

    Else glibc keeps up to 32 MiB for each thread that has ever used and freed such a block. Without glibc nothing is
    done.
    """
    if _MALLOPT is not None:
        _MALLOPT(_MMAP_THRESHOLD, _BYTES)
        _MALLOPT(_TRIM_THRESHOLD, _BYTES)
