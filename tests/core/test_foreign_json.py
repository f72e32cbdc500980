"""JSON from others: what is no document, and what would be too much of one."""

from __future__ import annotations

import tracemalloc

import pytest

from app.core.foreign_json import TooMany, parse
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
