"""How much a run may change before somebody is asked: `10x`, `25%`, `10x,25%,1h`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from typing import Annotated

from pydantic import BeforeValidator

from app.core.values import format_duration, parse_duration

#: After so long a held run goes on by itself, where nothing else is said.
USUAL_HOLD = timedelta(hours=1)
_SHORTEST_HOLD = timedelta(seconds=1)
_TIMES, _SHARE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)x"), re.compile(r"([0-9]{1,2}(?:\.[0-9]{1,3})?)%")
_ACCEPTED = "accepted: 10x, 25% or both, and then a time such as 1h, or never: 10x,25%,1h"


@dataclass(frozen=True)
class BrakeLimits:
    """What a run may change: a multiple of the usual number, a share of the table; the lower one counts."""

    #: More than 1; None for no such limit.
    times: Fraction | None
    #: Between 0 and 1, neither of them; None for no such limit.
    share: Fraction | None
    #: After how long a held run goes on; None for never.
    hold: timedelta | None = USUAL_HOLD

    @property
    def ending(self) -> str:
        """How a hold ends if nobody does anything."""
        return (
            "it waits until it is approved" if self.hold is None else f"it goes on after {format_duration(self.hold)}"
        )


def parse_brake(text: str) -> BrakeLimits:
    """Read limits in any order, each once. Raises ValueError."""
    found: dict[str, Fraction | timedelta | None] = {}
    for part in text.split(","):
        kind, value = _part(part)
        if kind in found:
            raise ValueError(f"says {kind} twice; {_ACCEPTED}")
        found[kind] = value
    times, share, hold = found.get("a multiple"), found.get("a share"), found.get("a time", USUAL_HOLD)
    if times is None and share is None:
        raise ValueError(f"has no limit; {_ACCEPTED}")
    assert not isinstance(times, timedelta)
    assert not isinstance(share, timedelta)
    assert not isinstance(hold, Fraction)
    return BrakeLimits(times, share, hold)


def _part(part: str) -> tuple[str, Fraction | timedelta | None]:
    if part == "never":
        return "a time", None
    if match := _TIMES.fullmatch(part):
        if (times := Fraction(match[1])) <= 1:
            raise ValueError(f"its multiple must be more than 1x; {_ACCEPTED}")
        return "a multiple", times
    if match := _SHARE.fullmatch(part):
        if not (share := Fraction(match[1]) / 100):
            raise ValueError(f"its share must be more than 0% and less than 100%; {_ACCEPTED}")
        return "a share", share
    try:
        hold = parse_duration(part)
    except ValueError:
        raise ValueError(f"not a brake; {_ACCEPTED}") from None
    if hold < _SHORTEST_HOLD:
        raise ValueError(f"its time must be at least 1s; {_ACCEPTED}")
    return "a time", hold


def _read(value: object) -> object:
    return parse_brake(value) if type(value) is str else value


BrakeSetting = Annotated[BrakeLimits | None, BeforeValidator(_read)]
