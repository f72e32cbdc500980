"""Numbers that the processes of a worker, or of a replica, share, in files of a directory that only they use.

The form of the files is prometheus_client's, whose collector reads them; writing is done here. prometheus_client maps
its files into memory, and on a file system without room the first touch of a new page kills the process with SIGBUS.
A write that finds no room is an error, which is told once; the number then counts on in memory, unseen by others.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import multiprocessing
import os
import shutil
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import structlog
from prometheus_client.mmap_dict import mmap_key

from app.core.role import this_replica

log = structlog.get_logger("worker")

#: Not the prefix of versions before 0.3, which remove what has it and does not end in the id of a process.
_PREFIX = "secrets-bridge-metrics-"
_HEADER = struct.Struct("=ii")
_NUMBERS = struct.Struct("=dd")


def join(parent: Path) -> Path:
    """Return the directory of this process and its siblings below `parent`, made if need be, and hold it for life.

    Its name is one that only the children of one main process can know: containers that share the parent have process
    ids in common. Whoever uses a directory has it locked, which no death outlives; what nobody has locked is removed.
    Raises OSError.
    """
    path = parent / f"{_PREFIX}{_family()}"
    for other in parent.glob(f"{_PREFIX}*"):
        if other != path:
            with suppress(OSError):  # in use, or somebody else's
                _remove(other)
    while True:
        path.mkdir(mode=0o700, exist_ok=True)
        descriptor = _lock(path, fcntl.LOCK_SH)
        with suppress(FileNotFoundError):  # another worker took it for deserted before it was locked
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return path  # the descriptor stays open, and with it the lock
        os.close(descriptor)


def _family() -> str:
    """Return a random name that siblings agree on: the runner or their main process drew a key that all have."""
    replica = this_replica()
    key = replica.key.encode() if replica else multiprocessing.current_process().authkey
    return hashlib.blake2b(key, digest_size=16, person=b"metrics").hexdigest()


def _lock(path: Path, how: int) -> int:
    """Return a locked descriptor of a directory. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove(path: Path) -> None:
    descriptor = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        if os.fstat(descriptor).st_uid == os.geteuid():
            shutil.rmtree(path)
    finally:
        os.close(descriptor)


class SharedValues:
    """The numbers of one process, for prometheus_client's metrics."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        #: Whether some number is in memory only, for lack of room.
        self.incomplete = False
        self._guard = threading.Lock()
        self._files: dict[str, _File] = {}

    def value(  # noqa: PLR0913, PLR0917 - prometheus_client's order
        self,
        kind: str,
        metric: str,
        name: str,
        labels: Sequence[str],
        values: Sequence[str],
        meaning: str,
        multiprocess_mode: str = "",
        **_other: object,
    ) -> SharedValue:
        """Return a new number, zero; made by prometheus_client for each series."""
        key = mmap_key(metric, name, list(labels), list(values), meaning)
        return SharedValue(self, f"gauge_{multiprocess_mode}" if kind == "gauge" else kind, key)

    def add(self, kind: str, key: str) -> tuple[_File, int] | None:
        """Return where a new series has its place, None when there is no room for it."""
        try:
            with self._guard:
                if kind not in self._files:
                    self._files[kind] = _File(self.directory / f"{kind}_{os.getpid()}.db")
                return self._files[kind], self._files[kind].add(key)
        except OSError as error:
            self.fail(error)
            return None

    def fail(self, error: OSError) -> None:
        """Say once that numbers are missing from what others see."""
        if not self.incomplete:
            log.warning("no room for metrics; some will be missing", error=error, errno=error.errno)
        self.incomplete = True

    def close(self) -> None:
        """Remove the files of gauges that count what is alive, as prometheus_client does: this process ends."""
        for path in self.directory.glob(f"gauge_live*_{os.getpid()}.db"):
            path.unlink(missing_ok=True)


class SharedValue:
    """A number in memory and, so that siblings see it, in a file."""

    _multiprocess = True

    def __init__(self, values: SharedValues, kind: str, key: str) -> None:
        self._values = values
        self._guard = threading.Lock()
        self._value = 0.0
        self._place = values.add(kind, key)

    def inc(self, amount: float) -> None:
        """Add to it."""
        with self._guard:
            self._value += amount
            self._write(0.0)

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Replace it; the time says which of several processes' numbers is the newest."""
        with self._guard:
            self._value = value
            self._write(timestamp or 0.0)

    def get(self) -> float:
        """Return this process's number."""
        return self._value

    def set_exemplar(self, _exemplar: object) -> None:
        """Do nothing: there are none."""

    def get_exemplar(self) -> None:
        """Return None: there are none."""

    def _write(self, timestamp: float) -> None:
        if self._place is not None:
            file, position = self._place
            try:
                file.write(position, _NUMBERS.pack(self._value, timestamp))
            except OSError as error:
                self._values.fail(error)


class _File:
    """One file: how much of it is in use, then entries of a key, a number and a time."""

    def __init__(self, path: Path) -> None:
        fresh = path.with_suffix(".new")  # readers may look at any moment, and must not find it without its beginning
        self._descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self._used = _HEADER.size
        try:
            self.write(0, _HEADER.pack(self._used, 0))
            fresh.rename(path)
        except OSError:  # the next series comes to try it again
            os.close(self._descriptor)
            raise

    def add(self, key: str) -> int:
        """Append an entry and return the position of its numbers. Raises OSError when there is no room."""
        text = key.encode()
        padded = text + b" " * (8 - (len(text) + 4) % 8)
        entry = struct.pack(f"=i{len(padded)}s", len(text), padded) + _NUMBERS.pack(0.0, 0.0)
        self.write(self._used, entry)
        self._used += len(entry)
        self.write(0, _HEADER.pack(self._used, 0))  # afterwards: readers go by it
        return self._used - _NUMBERS.size

    def write(self, position: int, data: bytes) -> None:
        """Write all of it. Raises OSError."""
        if os.pwrite(self._descriptor, data, position) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
