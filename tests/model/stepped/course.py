"""A course of the abstract model, played on the real code: after each move both must have come to the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tests.model.abstract.invariants import Invariants
from tests.model.abstract.moves import Move, moves
from tests.model.abstract.protocol import Protocol
from tests.model.abstract.world import INTERVAL, Phase, World, begin
from tests.model.stepped.bench import Bench

#: At which gate a replica of the model's phase stands.
GATES = {
    Phase.IDLE: None,
    Phase.HELD: "begin",
    Phase.RUNNING: "wait",
    Phase.DONE: "release, done",
    Phase.FAILED: "release, not done",
    Phase.LOST: "release, not done",
    Phase.FREED: "freed",
}
#: What a replica is told at the gates that it comes to on its way through one move of the model.
WORDS: dict[str, tuple[str, ...]] = {
    "fail before the claim": ("fail",),
    "claim: paused": ("go",),
    "claim: superseded": ("go",),
    "claim, and the first batch": ("go", "more"),
    "claim that is the only batch": ("go", "last"),
    "claim whose commit is not answered": ("go", "more, unheard"),
    "fail in a batch": ("fail",),
    "batch: fenced": ("go",),
    "batch": ("go", "more"),
    "batch whose commit is not answered": ("go", "more, unheard"),
    "finish": ("go", "end"),
    "finish whose commit is not answered": ("go", "end, unheard"),
    "release, done": ("go",),
    "write the failure down": ("go",),
    "cannot write the failure down": ("crash",),
    "crash": ("crash",),
}


class Differs(AssertionError):
    """The real code has come to another state than the model."""


class Course:
    """The model and the real code, side by side."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._protocol = Protocol()
        self._invariants = Invariants(self._protocol)
        self.world, _ = begin(len(bench.replicas))
        self.trace: list[str] = []
        bench.reset()

    def choices(self) -> list[Move]:
        """Return what can happen next."""
        return list(moves(self._protocol, self.world))

    def play(self, move: Move) -> None:
        """Have it happen in both. Raises Differs, with the course so far; Violation where the model breaks."""
        self.trace.append(_name(move))
        before, self.world = self.world, move.world
        self._invariants.check(before, move.world)
        if move.place is None:
            self._outside(before, move)
        else:
            self._of_replica(before, move.place, move.action)
        self._compare()

    def _outside(self, before: World, move: Move) -> None:
        after, bench = move.world, self._bench
        if (after.time, after.ahead) != (before.time, before.ahead):
            bench.clocks.set(after.time, after.ahead)
        elif after.paused != before.paused:
            (bench.pause if after.paused else bench.resume)()
        else:
            (bench.wipe if move.action == "Redis is wiped" else bench.expire)()

    def _of_replica(self, before: World, place: int, action: str) -> None:
        bench, current = self._bench, before.time - before.time % INTERVAL
        match action:
            case "tick" | "early tick":
                self._expect(bench.tick(place, current if action == "tick" else current + INTERVAL), "the lock")
            case "run by hand":
                self._expect(bench.by_hand(place), "the lock")
            case "find the lock gone":
                bench.replicas[place].lose()
                bench.go(place)
            case "release, not done":
                bench.go(place)
                if before.replicas[place].phase is Phase.LOST:
                    bench.go(place)
            case _:
                for word in WORDS[action]:
                    bench.go(place, word)

    def _expect(self, done: bool, what: str) -> None:
        if not done:
            raise Differs(self._told(f"{what} was refused"))

    def _compare(self) -> None:
        world, stored = self.world, self._bench.stored()
        pairs: list[tuple[str, Any, Any]] = [
            ("the newest slot", world.last, stored.last),
            ("the slot before it", world.previous, stored.previous),
            ("the token", world.token, stored.token),
            ("the mark", world.mark, self._bench.mark),
            ("the lock", world.orphaned or any(replica.holds for replica in world.replicas), self._bench.held),
            (
                "the ledger",
                [(row.slot, row.covered, row.changed, row.outcome.name) for row in world.rows],
                [(row.slot, row.covered, row.changed, row.outcome.name) for row in stored.rows],
            ),
            ("what is not reported yet", world.untold, stored.changed - stored.told),
        ]
        for number, replica in enumerate(world.replicas):
            pairs.append((f"replica {'ABC'[number]}", GATES[replica.phase], self._bench.replicas[number].gate))
        for what, expected, found in pairs:
            if expected != found:
                raise Differs(self._told(f"{what}: the model has {expected}, the real code {found}"))

    def _told(self, problem: str) -> str:
        return "\n".join([*self.trace, problem])


def play(bench: Bench, steps: int, choose: Callable[[int], int]) -> Course:
    """Play a course of so many moves; `choose` returns one of so many numbers from 0. Raises Differs."""
    course = Course(bench)
    for _ in range(steps):
        choices = course.choices()
        course.play(choices[choose(len(choices))])
    return course


def follow(bench: Bench, lines: Iterable[str]) -> Course:
    """Play the moves of these names, those of replicas with their letter before. Raises Differs."""
    course = Course(bench)
    for line in lines:
        named = [move for move in course.choices() if _name(move) == line]
        assert named, f"the model has no move {line!r} here"
        course.play(named[0])
    return course


def _name(move: Move) -> str:
    return move.action if move.place is None else f"{'ABC'[move.place]}: {move.action}"
