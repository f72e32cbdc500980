"""Buffers that hold keys and tokens, overwritten after use. Copies that Python makes cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def wipe(buffer: bytearray) -> None:
    """Overwrite a buffer with zeros."""
    buffer[:] = bytes(len(buffer))


@contextmanager
def wiping(buffer: bytearray) -> Iterator[bytearray]:
    """Overwrite the buffer at the end of the `with` block, however it ends."""
    try:
        yield buffer
    finally:
        wipe(buffer)
