"""Free steps of the real code: replicas are stopped inside their transactions as well, while others go on or wait.

Hypothesis chooses the steps and shrinks a course that breaks a promise. What no abstract state has is in here: two
claims that wait for each other's row, a claim that has read what another one is about to change.
"""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.model.abstract.world import HALF, INTERVAL, JUMP, Outcome
from tests.model.stepped.bench import Bench
from tests.model.stepped.promises import Broke, check

#: What a replica may be told at each of its gates.
ANSWERS = {
    "begin": ("go", "go", "go", "go", "fail", "crash"),
    "step": ("more", "more", "last", "end", "more, unheard", "last, unheard", "fail", "crash"),
    "wait": ("go", "go", "fail", "crash"),
    "release, done": ("go", "go", "crash"),
    "release, not done": ("go", "go", "crash"),
    "freed": ("go", "go", "crash"),
}
#: What a replica may be asked for.
KINDS = ("tick", "tick", "tick", "early tick", "old tick", "by hand")


class Steps(RuleBasedStateMachine):
    """A course of steps. `bench` is set by who runs it, `taken` counts."""

    bench: Bench
    #: How often what was done, in all courses together.
    taken: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.time = self.ahead = self.newest = 0
        self.jumped = self.paused = False
        self.bench.reset()

    def teardown(self) -> None:
        """End what is under way; then, once locks have expired and clocks are right, a run must come."""
        self.bench.end_all()
        self.promises()
        self._goes_on()

    @precondition(lambda self: any(each.thread is None for each in self.bench.replicas))
    @rule(last=st.booleans(), kind=st.sampled_from(KINDS), alone=st.booleans())
    def ask(self, last: bool, kind: str, alone: bool) -> None:
        """Give an idle replica something to do; unless `alone`, the lock of another one runs out before."""
        number = [number for number, each in enumerate(self.bench.replicas) if each.thread is None][-last]
        if not alone:
            self.bench.expire()
        current = self.time - self.time % INTERVAL
        if kind == "by hand":
            taken = self.bench.by_hand(number)
        else:
            slots = {"tick": current, "early tick": current + INTERVAL, "old tick": current - INTERVAL}
            taken = self.bench.tick(number, slots[kind])
        self._count(f"{kind}: {'taken' if taken else 'refused'}")

    @precondition(lambda self: self._at_gates())
    @rule(last=st.booleans(), choice=st.sampled_from(range(24)))
    def go(self, last: bool, choice: int) -> None:
        """Have a replica go on from its gate."""
        number = self._at_gates()[-last]
        gate = self.bench.replicas[number].gate
        assert gate is not None
        word = ANSWERS[gate][choice % len(ANSWERS[gate])]
        come_to = self.bench.go(number, word)
        waits = come_to is None and self.bench.replicas[number].thread is not None
        self._count(f"{gate}: {word}" + (": waits for another one" if waits else ""))

    @precondition(lambda self: self._at_gates())
    @rule(last=st.booleans(), choice=st.sampled_from(range(24)))
    def go_further(self, last: bool, choice: int) -> None:
        """Have a replica go on without a fault, through some gates."""
        number = self._at_gates()[-last]
        for _ in range(1 + choice % 3):
            gate = self.bench.replicas[number].gate
            if gate is not None:
                word = {"step": "more" if choice % 2 else "last"}.get(gate, "go")
                self.bench.go(number, word)
                self._count(f"{gate}: {word}")

    @precondition(lambda self: self._at_gates())
    @rule(last=st.booleans())
    def lose(self, last: bool) -> None:
        """End the connection of a transaction that is open; or renew the lock, and find out if it is gone."""
        number = self._at_gates()[-last]
        replica = self.bench.replicas[number]
        if replica.gate == "step":
            self.bench.cut(number)
            self.bench.settle()
            self._count("cut")
        elif replica.gate in {"begin", "wait"}:
            replica.lose()
            self._count("renew")

    @rule(what=st.sampled_from(["time", "time", "time", "expire", "wipe", "ahead", "behind", "right", "steer"]))
    def outside(self, what: str) -> None:
        """Let half a slot go by, or have something happen to the servers; or have an operator pause, or resume."""
        self._count(what)
        match what:
            case "expire":
                self.bench.expire()
            case "wipe":
                self.bench.wipe()
            case "steer":
                (self.bench.resume if self.paused else self.bench.pause)()
                self.paused = not self.paused
            case "time":
                self.time += HALF
                self.bench.clocks.set(self.time, self.ahead)
            case _:
                ahead = {"ahead": JUMP, "behind": -JUMP, "right": 0}[what]
                if self.ahead == 0 or ahead == 0:
                    self.jumped = self.jumped or ahead != self.ahead
                    self.ahead = ahead
                    self.bench.clocks.set(self.time, ahead)

    @invariant()
    def promises(self) -> None:
        """Ask what is stored."""
        stored = self.bench.stored()
        check(stored, jumped=self.jumped, newest=self.newest)
        self.newest = stored.token

    def _at_gates(self) -> list[int]:
        return [number for number, each in enumerate(self.bench.replicas) if each.gate]

    def _goes_on(self) -> None:
        if self.paused:
            self.bench.resume()
        self.bench.expire()
        before = sum(row.outcome is Outcome.SUCCESS for row in self.bench.stored().rows)
        for _ in range(6):
            self.bench.clocks.set(self.time)
            if self.bench.tick(0, self.time - self.time % INTERVAL):
                for word in ("go", "end", "go"):
                    if self.bench.replicas[0].gate is not None:
                        self.bench.go(0, word)
                self.bench.end_all()
                self.bench.expire()
                stored = self.bench.stored()
                check(stored, jumped=self.jumped, newest=self.newest)
                if any(row.outcome is Outcome.SUCCESS and row.token > self.newest for row in stored.rows):
                    return
                self.newest = stored.token
            self.time += HALF
        raise Broke(f"nothing is run two and a half slots after the last fault, of {before} runs that were")

    def _count(self, what: str) -> None:
        self.taken[what] += 1
