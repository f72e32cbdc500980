"""What PostgreSQL's text and jsonb can hold: no NUL, no half of a surrogate pair, no number without an end."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

#: Levels of a document that is accepted: neither Python's parser nor PostgreSQL's may run out of stack.
MOST_LEVELS = 64


def fit(text: str) -> str:
    """Return a text without what PostgreSQL cannot hold."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()


def problems(value: object) -> list[str]:
    """Return what of a parsed JSON value PostgreSQL cannot hold, each kind once, without a value."""
    return list(dict.fromkeys(_problems(value, 0)))


def _problems(value: object, level: int) -> Iterator[str]:
    if level > MOST_LEVELS:
        yield f"more than {MOST_LEVELS} levels"
    elif isinstance(value, str) and fit(value) != value:
        yield "NUL" if "\x00" in value else "half a surrogate pair"
    elif isinstance(value, float) and not isfinite(value):
        yield "a number that is none or has no end"
    elif isinstance(value, dict | list):
        items = [*value, *value.values()] if isinstance(value, dict) else value
        for item in items:
            yield from _problems(item, level + 1)


def whole_numbers(value: object) -> dict[str, int]:
    """Return what of a parsed JSON value are names and whole numbers: all that there is in what we write as counts."""
    return {name: number for name, number in value.items() if type(number) is int} if isinstance(value, dict) else {}
