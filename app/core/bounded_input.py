"""What somebody else wrote, JSON and files, read within bounds of memory and time."""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

#: Bytes of a file that is accepted, and of all files of a folder: more than any bundle of certificates has.
MOST_OF_A_FILE, MOST_OF_A_FOLDER = 4 * 1024 * 1024, 16 * 1024 * 1024
#: Entries of a folder that is accepted; a system has some 500 in that of its authorities.
MOST_ENTRIES = 5000


class TooMany(ValueError):
    """A document has more values than may be read."""


def content(path: str | Path) -> bytes:
    """Return what a file has. Raises OSError for one that cannot be read, has more than it may, or makes us wait.

    A path from the environment may be a pipe that nobody writes to, a terminal, or a device without an end.
    """
    descriptor, found = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY), b""
    try:
        while part := os.read(descriptor, MOST_OF_A_FILE + 1 - len(found)):
            found += part
        if not found and stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            raise _refused(errno.EAGAIN)
    finally:
        os.close(descriptor)
    if len(found) > MOST_OF_A_FILE:
        raise _refused(errno.EFBIG)
    return found


@contextmanager
def copied(path: str | Path) -> Iterator[str]:
    """Yield the path of a copy of a file, for a library that takes nothing else and would wait for a pipe.

    The copy lies in memory where the system has that. Raises OSError, as `content` does.
    """
    data = content(path)
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("secrets-bridge-worker"), "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor
            file.write(data)
            yield f"/dev/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            yield file.name


def entries(folder: str | Path, pattern: str = "*") -> list[Path]:
    """Return what is in a folder, sorted. Raises OSError for one that has more than it may, such as `/`."""
    found = list(islice(Path(folder).glob(pattern), MOST_ENTRIES + 1))
    if len(found) > MOST_ENTRIES:
        raise _refused(errno.EFBIG)
    return sorted(found)


def contents(files: Iterable[Path], *, passing_over: bool = False) -> Iterator[bytes]:
    """Yield what each of these files has. Raises OSError for too much in all.

    For one that cannot be read it raises OSError too, unless `passing_over` such is asked for.
    """
    left = MOST_OF_A_FOLDER
    for file in files:
        try:
            found = content(file)
        except OSError:
            if not passing_over:
                raise
            continue
        if (left := left - len(found)) < 0:
            raise _refused(errno.EFBIG)
        yield found


def _refused(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def parse(body: bytes | bytearray, *, most: int) -> Any:
    """Return a document. Raises TooMany for one of more than `most` values, ValueError for one that is no JSON.

    Values are counted by what stands before them, before any of them is made: `{},` is 3 bytes here and some 100 in
    memory. Brackets and commas in texts count as well.
    """
    if sum(map(body.count, (b",", b"{", b"["))) > most:
        raise TooMany
    try:
        return json.loads(body, parse_constant=_refuse)
    except Exception:  # noqa: BLE001 - too deep, digits without end, half a character: all of it is no document of ours
        raise ValueError("not JSON") from None


def _refuse(_word: str) -> NoReturn:
    raise ValueError("not JSON")
