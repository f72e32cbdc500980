"""What somebody else wrote, JSON and files, read within bounds of memory and time."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any, NoReturn

#: Bytes of a file that is accepted: more than any bundle of certificates has.
MOST_OF_A_FILE = 4 * 1024 * 1024


class TooMany(ValueError):
    """A document has more values than may be read."""


def content(path: str | Path) -> bytes:
    """Return what a file has. Raises OSError for one that cannot be read, has more than it may, or makes us wait.

    A path from the environment may be a pipe that nobody writes to, or a device without an end.
    """
    descriptor, found = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), b""
    try:
        while part := os.read(descriptor, MOST_OF_A_FILE + 1 - len(found)):
            found += part
    finally:
        os.close(descriptor)
    if len(found) > MOST_OF_A_FILE:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return found


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
