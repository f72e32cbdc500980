"""What the statements of the protocol do, one method each: a defect of the model is one method in another way.

PostgreSQL's part follows `app/sweeping/ledger/`, Redis's the scripts of `app/sweeping/lock.py`. The lock of the
sweeper's row makes transactions of claims one after the other: so each is a single step.
"""

from __future__ import annotations

from tests.model.abstract.world import HALF, INTERVAL, Outcome, Replica, Row, World


class Protocol:
    """The protocol as it is."""

    def due(self, world: World, replica: Replica) -> int:
        """CLAIM: which slot a run is for."""
        current = world.now - world.now % INTERVAL
        if replica.by_hand:
            ahead = world.last is not None and world.now <= world.last <= world.now + INTERVAL * 3 // 4
            return (world.last or 0) + 1 if ahead else world.now
        tick = replica.tick
        return tick if tick is not None and tick > current and tick - world.now <= HALF else current

    def may_claim(self, world: World, replica: Replica, slot: int) -> bool:
        """CLAIM: whether the fence may be moved to it."""
        if any(row.slot == slot and row.outcome is Outcome.SUCCESS for row in world.rows):
            return False
        last = world.last
        return last is None or last < slot or self.far_ahead(world) or (last == slot and not replica.by_hand)

    def far_ahead(self, world: World) -> bool:
        """CLAIM: whether the newest slot lies further ahead than one may."""
        return world.last is not None and world.last > world.now + INTERVAL * 3 // 4

    def previous(self, world: World, slot: int) -> int | None:
        """CLAIM: the slot that stands when this one is given back."""
        if world.last is None or world.last == slot:
            return world.previous
        return world.last if world.last < slot else slot - INTERVAL

    def next_token(self, world: World) -> int:
        """CLAIM: the token of a claim."""
        return world.token + 1

    def interrupt(self, world: World) -> World:
        """INTERRUPT: close what is open, and report what it had changed."""
        found = sum(row.changed for row in world.rows if row.outcome is Outcome.RUNNING)
        rows = tuple(
            row._replace(outcome=Outcome.INTERRUPTED) if row.outcome is Outcome.RUNNING else row for row in world.rows
        )
        return world._replace(rows=rows, untold=world.untold - found)

    def put_right(self, world: World, slot: int, *, claimed: bool) -> World:
        """SET_BACK and FORGET: what a clock ahead has left behind."""
        if not claimed:
            before = None if world.previous is None else min(world.previous, slot - INTERVAL)
            world = world._replace(last=slot, previous=before, token=world.token + 1)
        rows = (
            row._replace(outcome=Outcome.INTERRUPTED) if row.slot > slot and row.outcome is Outcome.SUCCESS else row
            for row in world.rows
        )
        return world._replace(rows=tuple(rows))

    def fenced(self, world: World, replica: Replica) -> bool:
        """FENCE: whether a newer claim keeps a replica from writing."""
        return replica.token != world.token

    def close_failed(self, world: World, replica: Replica) -> World:
        """CLOSE_FAILED and GIVE_BACK: write a failure down, and report what was changed unless that was done."""
        mine = [row for row in world.rows if row.run == replica.run]
        if not mine or mine[0].outcome is Outcome.SUCCESS:
            return world
        later = any(row.outcome is Outcome.SUCCESS for row in world.rows[world.rows.index(mine[0]) + 1 :])
        if later:
            return world
        if mine[0].outcome is Outcome.RUNNING:
            told = self.told_of_failure(replica, mine[0])
            world = world._replace(rows=tuple(row for row in world.rows if row.run != replica.run))
            world = world._replace(untold=world.untold - told)
        if self.gives_back(world, replica):
            world = world._replace(last=world.previous)
        return world

    def gives_back(self, world: World, replica: Replica) -> bool:
        """GIVE_BACK: whether the slot is this replica's to give back."""
        return replica.token == world.token

    def told_of_failure(self, _replica: Replica, row: Row) -> int:
        """CLOSE_FAILED: how many changed rows are reported with a failure."""
        return row.changed

    def marked(self, world: World, slot: int | None, claimed: int | None) -> int | None:
        """RELEASE: the mark after a run that was done."""
        if claimed is not None and claimed <= world.time and (slot is None or claimed > slot):
            slot = claimed
        mark = world.mark
        if slot is not None and not (mark is not None and slot <= mark <= world.time + INTERVAL):
            return slot
        return mark

    def is_done(self, world: World, slot: int | None) -> bool:
        """ACQUIRE: whether a tick's slot needs no other run."""
        mark = world.mark
        return slot is not None and mark is not None and slot <= mark <= world.time + INTERVAL

    def released(self, world: World, place: int) -> World:
        """RELEASE: free the lock, if it is this replica's."""
        replica = world.replicas[place]
        return world.put(place, replica._replace(holds=False)) if replica.holds else world
