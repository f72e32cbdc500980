"""Protocols that are wrong in one statement each: a search that finds nothing wrong with them is worth nothing."""

from __future__ import annotations

from tests.model.abstract.protocol import Protocol
from tests.model.abstract.world import INTERVAL, Outcome, Replica, Row, World


class FenceWithoutToken(Protocol):
    """FENCE lets whoever has claimed go on."""

    def fenced(self, world: World, replica: Replica) -> bool:
        del world, replica
        return False


class ClaimOfOlderSlots(Protocol):
    """CLAIM without `last_slot <`."""

    def may_claim(self, world: World, replica: Replica, slot: int) -> bool:
        del replica
        return all(row.slot != slot or row.outcome is not Outcome.SUCCESS for row in world.rows)


class ClaimOfFinishedSlots(Protocol):
    """CLAIM that does not look for a run which has succeeded."""

    def may_claim(self, world: World, replica: Replica, slot: int) -> bool:
        return super().may_claim(world._replace(rows=()), replica, slot)


class ClaimWithoutNewToken(Protocol):
    """CLAIM that leaves the token as it is."""

    def next_token(self, world: World) -> int:
        return world.token


class GiveBackByAnybody(Protocol):
    """GIVE_BACK without the token."""

    def gives_back(self, world: World, replica: Replica) -> bool:
        del world, replica
        return True


class GiveBackToNobody(Protocol):
    """No GIVE_BACK: the slot of a run that failed counts as run."""

    def gives_back(self, world: World, replica: Replica) -> bool:
        del world, replica
        return False


class PreviousAlwaysNeighbour(Protocol):
    """CLAIM that takes the slot before its own for the one that stands."""

    def previous(self, world: World, slot: int) -> int | None:
        return None if world.last is None else slot - INTERVAL


class ReleaseOfAnyLock(Protocol):
    """RELEASE deletes the key whoever's it is."""

    def released(self, world: World, place: int) -> World:
        del place
        free = tuple(replica._replace(holds=False) for replica in world.replicas)
        return world._replace(replicas=free, orphaned=False)


class NoMark(Protocol):
    """RELEASE marks no slot as done."""

    def marked(self, world: World, slot: int | None, claimed: int | None) -> int | None:
        del slot, claimed
        return world.mark


class MarkAheadCounts(Protocol):
    """RELEASE marks what PostgreSQL's clock has claimed, although it has not begun by Redis's."""

    def marked(self, world: World, slot: int | None, claimed: int | None) -> int | None:
        return max((at for at in (world.mark, slot, claimed) if at is not None), default=None)

    def is_done(self, world: World, slot: int | None) -> bool:
        return slot is not None and world.mark is not None and slot <= world.mark


class InterruptForgets(Protocol):
    """INTERRUPT closes what is open and reports nothing."""

    def interrupt(self, world: World) -> World:
        return super().interrupt(world)._replace(untold=world.untold)


class NoInterrupt(Protocol):
    """Nobody closes what a run before has left open."""

    def interrupt(self, world: World) -> World:
        return world


class FailureFromMemory(Protocol):
    """A failure reports what its run remembers, and not what is committed."""

    def told_of_failure(self, replica: Replica, row: Row) -> int:
        del row
        return replica.changed


class ClockAheadMutes(Protocol):
    """CLAIM never doubts a slot that lies ahead."""

    def far_ahead(self, world: World) -> bool:
        del world
        return False


class ClockAheadByASlotMutes(Protocol):
    """CLAIM doubts a slot only when it lies ahead by more than a whole one."""

    def far_ahead(self, world: World) -> bool:
        return world.last is not None and world.last > world.now + INTERVAL


DEFECTS: tuple[type[Protocol], ...] = (
    FenceWithoutToken,
    ClaimOfOlderSlots,
    ClaimOfFinishedSlots,
    ClaimWithoutNewToken,
    GiveBackByAnybody,
    GiveBackToNobody,
    PreviousAlwaysNeighbour,
    ReleaseOfAnyLock,
    NoMark,
    MarkAheadCounts,
    InterruptForgets,
    NoInterrupt,
    FailureFromMemory,
    ClockAheadMutes,
    ClockAheadByASlotMutes,
)
