"""Floors: how many effects a round must have had, so that one in which little happened is no proof."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple


class Floor(NamedTuple):
    """The least for some kinds of effects, for each minute that faults strike."""

    least: float
    kinds: tuple[str, ...]
    #: Of how many different kinds at the most there must have been one; None: each kind has its own least.
    most: int | None = None


def each(least: float, *kinds: str) -> Floor:
    """Ask for so many effects a minute of each of these kinds; of a part of one for one."""
    return Floor(least, kinds)


def some(least: float, *kinds: str, most: int | None = None) -> Floor:
    """Ask for an effect of so many different ones of these kinds a minute, until it is all, or `most`.

    For what cannot be promised kind by kind in a minute, because there are more than come in turn.
    """
    return Floor(least, kinds, len(kinds) if most is None else most)


def too_few(floors: Sequence[Floor], effects: Mapping[str, int], seconds: float) -> list[str]:
    """Return which floors were not reached in so many seconds, as sentences."""
    return [text for floor in floors for text in _too_few(floor, effects, seconds)]


def without(floors: Sequence[Floor], kinds: Collection[str]) -> tuple[Floor, ...]:
    """Return the floors but for these kinds."""
    left = [floor._replace(kinds=tuple(kind for kind in floor.kinds if kind not in kinds)) for floor in floors]
    return tuple(floor for floor in left if floor.kinds)


def _too_few(floor: Floor, effects: Mapping[str, int], seconds: float) -> Iterator[str]:
    least = math.ceil(round(floor.least * seconds / 60, 6))  # the rounding is for 0.1 * 3, which is more than 0.3
    if floor.most is None:
        for kind in floor.kinds:
            if effects.get(kind, 0) < least:
                yield f"{kind}: {effects.get(kind, 0)} with an effect, at least {least} were to be"
        return
    least = min(least, floor.most, len(floor.kinds))
    had = [kind for kind in floor.kinds if effects.get(kind, 0)]
    if len(had) < least:
        yield f"{len(had)} kinds with an effect of {', '.join(floor.kinds)}: at least {least} were to be"
