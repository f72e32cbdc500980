"""JSON and files from others: what is none, and what would be too much of one."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from app.core.bounded_input import MOST_OF_A_FILE, TooMany, content, parse
from app.gitops.client import MOST_BODY, MOST_VALUES

MIB = 1024 * 1024


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": "\xff\xfe"}',
        b"\xff\xfe\x00",
    ],
)
def test_what_is_no_document_is_one_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        parse(body, most=10**6)


def test_as_many_values_as_are_allowed_are_read_and_one_more_are_not() -> None:
    assert parse(b"[1,2,3]", most=3) == [1, 2, 3]
    with pytest.raises(TooMany):
        parse(b"[1,2,3,4]", most=3)


SMALLEST = [
    b"[" + b",".join([b"{}"] * 1_390_000) + b"]",
    b"[" + b",".join([b"[]"] * 1_390_000) + b"]",
    b'{"nodes":[' + b",".join([b'""'] * 1_390_000) + b"]}",
    b"[" * 4_000_000,
    b"{" + b",".join(b'"%x":0' % number for number in range(400_000)) + b"}",
]


@pytest.mark.parametrize("body", SMALLEST, ids=["objects", "lists", "texts", "levels", "names"])
def test_a_body_of_very_many_small_values_is_refused_before_they_are_made(body: bytes) -> None:
    assert len(body) <= MOST_BODY
    tracemalloc.start()
    try:
        with pytest.raises(TooMany):
            parse(body, most=MOST_VALUES)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b",".join([b'{"a":0}'] * (MOST_VALUES // 2 - 1)) + b"]",
        b"{" + b",".join(b'"%x":0' % number for number in range(MOST_VALUES - 2)) + b"}",
    ],
    ids=["objects", "names"],
)
def test_the_most_that_is_read_takes_some_tens_of_megabytes(body: bytes) -> None:
    tracemalloc.start()
    try:
        parse(body, most=MOST_VALUES)
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * MOST_OF_A_FILE)
    assert content(path) == path.read_bytes()
    assert content("/dev/null") == b""


def _too_large(path: Path) -> None:
    path.write_bytes(b"x" * (MOST_OF_A_FILE + 1))


def _without_an_end(path: Path) -> None:
    path.symlink_to("/dev/zero")


FILES: dict[str, Callable[[Path], None]] = {
    "absent": lambda _path: None,
    "a directory": Path.mkdir,
    "too large": _too_large,
    "without an end": _without_an_end,
}


@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
def test_what_is_no_file_that_can_be_read_is_one_error(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "file")
    with pytest.raises(OSError, match=r"(?i)no such file|directory|too large"):
        content(tmp_path / "file")


def test_a_pipe_keeps_nobody_waiting(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OSError, match="unavailable"):
        content(path)  # nobody has it open for writing
    writer = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(OSError, match="unavailable"):
            content(path)
    finally:
        os.close(writer)
