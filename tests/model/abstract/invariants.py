"""What holds in every state that can be reached: the promises, in terms of the model."""

from __future__ import annotations

from collections import Counter

from tests.model.abstract.moves import Violation, acquire, claim
from tests.model.abstract.protocol import Protocol
from tests.model.abstract.world import HALF, INTERVAL, Outcome, Phase, Replica, World, index


class Invariants:
    """The promises, asked of one protocol."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        #: What recovers was judged by, without the replicas: many states have it in common.
        self._recover: set[World] = set()

    def check(self, before: World, after: World) -> None:
        """Raise Violation if a step has led to a state that breaks a promise."""
        if after.rows is not before.rows and after.rows != before.rows:
            _once(after)
            _nothing_lost(after)
            _tokens(before, after)
        _fence(after)
        if after.untold != sum(row.changed for row in after.rows if row.outcome is Outcome.RUNNING):
            raise Violation("what a run has changed is reported more or less than once")
        left = after._replace(
            replicas=(Replica(),), orphaned=False, ahead=0, paused=False, done=None, jumped=False, untold=0
        )
        if left not in self._recover:
            _goes_on(self._protocol, left)
            self._recover.add(left)


def _once(world: World) -> None:
    standing = Counter(row.slot for row in world.rows if row.outcome is not Outcome.INTERRUPTED)
    if any(number > 1 for number in standing.values()):
        raise Violation("a slot has two runs that stand")
    if sum(row.outcome is Outcome.RUNNING for row in world.rows) > 1:
        raise Violation("two runs are open")


def _nothing_lost(world: World) -> None:
    """Each slot from the first claim's to the last one's was run or is covered; exactly once if no clock has jumped."""
    if not world.rows:
        return
    run = {index(row.slot) for row in world.rows}
    last_of_slot = {row.slot: row.covered for row in world.rows}  # a slot that is claimed once more covers the same
    covered = [index(slot) - number for slot, most in last_of_slot.items() for number in range(1, most + 1)]
    span = set(range(index(world.rows[0].slot), index(world.rows[-1].slot) + 1))
    if not span <= run | set(covered):
        raise Violation("a slot is neither run nor covered")
    if not world.jumped:
        if len(span) != len(run) + len(covered):
            raise Violation("slots that were run and slots that are covered do not add up")
        if list(world.rows) != sorted(world.rows, key=lambda row: row.slot):
            raise Violation("a slot was claimed after a newer one")


def _fence(world: World) -> None:
    """The fence knows the newest run, unless that has failed."""
    newest = world.rows[-1] if world.rows else None
    if newest is None or newest.outcome is Outcome.INTERRUPTED or world.last is None:
        return
    if index(world.last) != index(newest.slot):
        raise Violation("the fence does not stand at the newest run")


def _tokens(before: World, after: World) -> None:
    if after.runs > before.runs and after.token <= before.token:
        raise Violation("a claim's token is not newer than the one before")


def _goes_on(protocol: Protocol, world: World) -> None:
    """After all faults, when locks have expired and clocks are right, a run comes within two and a half slots."""
    for _ in range(6):
        tick = world.time - world.time % INTERVAL
        held = acquire(protocol, world, 0, tick, by_hand=False)
        if held is not None:
            claimed = claim(protocol, held, 0)
            if claimed.replicas[0].phase is Phase.RUNNING:
                return
            world = claimed.put(0, Replica())
        world = world._replace(time=world.time + HALF)
    raise Violation("nothing is run two and a half slots after the last fault")
