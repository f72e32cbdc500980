"""What a canary may look like where it leaks: as it is, in part, and in the encodings that programs have at hand."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import NamedTuple

#: Letters of a canary that count as a find: what is cut off, or cut out, leaks too.
PART = 12
#: Letters of base64 that any twelve bytes fix, whatever stands before and behind them.
_BASE64_PART = (PART * 8 - 8) // 6


class Find(NamedTuple):
    """A canary that is where it may not be."""

    canary: str
    place: str
    form: str
    #: What is around it.
    context: str = ""

    def __str__(self) -> str:
        return f"{self.canary} in {self.place}, {self.form}: ...{self.context}..."


class Forms:
    """Finds canaries in texts."""

    def __init__(self, canaries: Mapping[str, str]) -> None:
        self._canaries = dict(canaries)

    def find(self, place: str, text: str) -> list[Find]:
        """Return one find for each canary and form that is in a text of this place."""
        found: dict[tuple[str, str], Find] = {}
        for form, name, at in self._hits(text):
            context = " ".join(text[max(0, at - 70) : at + 70].split())
            found.setdefault((name, form), Find(name, place, form, context))
        return list(found.values())

    def _hits(self, text: str) -> Iterator[tuple[str, str, int]]:
        low = text.lower()
        for form, pattern, decode in _ENCODED:
            for run in pattern.finditer(low):
                decoded = decode(run[0])
                yield from ((form, name, run.start()) for name, _ in _windows(decoded, self._raw, PART))
        for run in _BASE64.finditer(text):
            for name, at in _windows(run[0], self._base64, _BASE64_PART):
                yield "base64", name, run.start() + at

    @cached_property
    def _raw(self) -> dict[str, str]:
        return {part: name for name, text in self._canaries.items() for part in _parts(text, PART)}

    @cached_property
    def _base64(self) -> dict[str, str]:
        return {
            part: name
            for name, text in self._canaries.items()
            for shift in range(3)
            for part in _parts(_fixed(text.encode(), shift), _BASE64_PART)
        }


def _parts(text: str, length: int) -> Iterator[str]:
    return (text[at : at + length] for at in range(len(text) - length + 1))


def _windows(text: str, table: Mapping[str, str], length: int) -> Iterator[tuple[str, int]]:
    for at in range(len(text) - length + 1):
        if (name := table.get(text[at : at + length])) is not None:
            yield name, at


def _fixed(content: bytes, shift: int) -> str:
    """Return the base64 of what stands `shift` bytes after a multiple of three, without what its neighbours change.

    Letters and digits never encode to the two letters in which the alphabet for URLs differs.
    """
    encoded = base64.b64encode(bytes(shift) + content).decode()
    first = (shift * 8 + 5) // 6
    return encoded[first : (shift + len(content)) * 8 // 6]


def _unhex(text: str) -> str:
    even = text[: len(text) // 2 * 2], text[1 : 1 + (len(text) - 1) // 2 * 2]
    return " ".join(bytes.fromhex(half).decode("latin-1") for half in even).lower()


def _unescape(text: str) -> str:
    return bytes.fromhex(re.sub(r"%|\\u00|\\x|&#x|;", "", text)).decode("latin-1").lower()


_ENCODED = (
    ("as it is", re.compile(r"[a-z0-9]{12,}"), str),
    ("hex", re.compile(r"[0-9a-f]{24,}"), _unhex),
    ("percent-encoded", re.compile(r"(?:%[0-9a-f]{2}){12,}"), _unescape),
    ("escaped", re.compile(r"(?:\\u00[0-9a-f]{2}){12,}|(?:\\x[0-9a-f]{2}){12,}|(?:&#x[0-9a-f]{2};){12,}"), _unescape),
)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{14,}")
