"""What is answered to the question why: one sentence, what it rests on, and where to look next."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Served(StrEnum):
    """Whether the work of a slot was done."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Answer:
    """`kind` is a word of a closed set."""

    kind: str
    served: Served
    sentence: str
    facts: tuple[str, ...] = ()
    next: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cause:
    """Why a slot had no run of its own: `text` goes on after "there was no run of its own: "."""

    kind: str
    text: str
    facts: tuple[str, ...] = ()
    next: tuple[str, ...] = field(default=())
