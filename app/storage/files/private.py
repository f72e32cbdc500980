"""Copies of files for libpq, which refuses a key or a list of passwords that others may read, and waits for a pipe.

A mounted Secret is such a file, often without a way to change that, and the file system of a container takes no other.
"""

from __future__ import annotations

import atexit
import os
import stat
import tempfile
import threading
from pathlib import Path

from app.core.bounded_input import content

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
#: A file that is not there, so that libpq looks for no other.
NONE = "/nonexistent/root.crt"


def private(path: str) -> str:
    """Return a file's path, that of a copy when others may read the file or it is no file, or NONE; see `plain`."""
    return plain(path, unfit=_OTHERS)


def plain(path: str, *, unfit: int = 0) -> str:
    """Return a file's path, that of a copy when it is a pipe or a device, or has an `unfit` mode.

    NONE for what cannot be read within bounds: libpq would wait for it, or read it without an end.
    """
    try:
        data, mode = content(path), Path(path).stat().st_mode
    except OSError:
        return NONE
    return path if stat.S_ISREG(mode) and not mode & unfit else copy(path, data)


class _Copy:
    """A file that this process alone can read, in memory where the system has that."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create("secrets-bridge-worker")
            os.fchmod(self._descriptor, 0o600)
            self.path = f"/dev/fd/{self._descriptor}"
        else:
            self._descriptor, self.path = tempfile.mkstemp()
            atexit.register(Path(self.path).unlink, missing_ok=True)

    def write(self, data: bytes) -> None:
        os.pwrite(self._descriptor, data, 0)
        os.ftruncate(self._descriptor, len(data))


_copies: dict[str, _Copy] = {}
_copying = threading.Lock()


def copy(name: str, data: bytes) -> str:
    """Return the path of a copy with this content; it is the same one for each name, since libpq may be reading it."""
    with _copying:
        if name not in _copies:
            _copies[name] = _Copy()
        _copies[name].write(data)
        return _copies[name].path


def is_there(path: Path) -> bool:
    """Return whether there is a file that this process may know of: none, where a folder above it is closed to us."""
    try:
        return path.exists()
    except OSError:
        return False
