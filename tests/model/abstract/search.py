"""A breadth-first search through all states to a depth: the first counterexample that it finds is a shortest one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import islice

from tests.model.abstract.invariants import Invariants
from tests.model.abstract.moves import Violation, moves
from tests.model.abstract.protocol import Protocol
from tests.model.abstract.world import World, begin, canonical, order


@dataclass
class Explored:
    """How far a search came, and the counterexample that ended it."""

    depth: int = 0
    #: States that were met, at which depth.
    levels: list[int] = field(default_factory=list)
    transitions: int = 0
    actions: Counter[str] = field(default_factory=Counter)
    broken: str = ""
    trace: list[str] = field(default_factory=list)

    @property
    def states(self) -> int:
        """How many states were met."""
        return sum(self.levels)


#: How a state was reached: the one before, and the number of its move.
_Steps = dict[World, tuple[World, int | None] | None]


def explore(
    protocol: Protocol,
    *,
    depth: int,
    replicas: int = 2,
    without: Collection[str] = (),
    progress: Callable[[Explored], None] = lambda _explored: None,
) -> Explored:
    """Go through all states to this depth, or to the first that breaks a promise; `without` these actions."""
    level = [canonical(world) for world in begin(replicas)]
    seen: _Steps = dict.fromkeys(level)
    found, invariants = Explored(levels=[len(level)]), Invariants(protocol)
    while level and found.depth < depth:
        after: list[World] = []
        for world in level:
            made = None
            try:
                for number, move in enumerate(moves(protocol, world)):
                    if move.action in without:
                        continue
                    found.transitions += 1
                    found.actions[move.action] += 1
                    state = canonical(move.world)
                    if state not in seen:
                        seen[state], made = (world, number), number
                        invariants.check(world, move.world)
                        after.append(state)
                        made = None
            except Violation as violation:
                found.broken, found.trace = str(violation), _trace(protocol, seen, world, made)
                return found
        level = after
        found.depth += 1
        found.levels.append(len(level))
        progress(found)
    return found


def _trace(protocol: Protocol, seen: _Steps, world: World, last: int | None) -> list[str]:
    """Tell how a state was reached, with replicas that keep their names, and the last move if that is what broke it."""
    path = [(world, last)]
    while (step := seen[path[0][0]]) is not None:
        path.insert(0, step)
    names = [f"replica {letter}" for letter in "ABCDE"[: len(world.replicas)]]
    lines = ["(the slot before was run)" if path[0][0].rows else "(nothing was ever run)"]
    for state, number in path:
        if number is None:
            lines.append("and a step of a replica that must not be possible")
            break
        move = next(islice(moves(protocol, state), number, None))
        lines.append(move.action if move.place is None else f"{names[move.place]}: {move.action}")
        names = [names[place] for place in order(move.world.replicas)]
    return lines
