"""All that can happen next: what replicas do, what is done to them, and how time goes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.model.abstract.protocol import Protocol
from tests.model.abstract.world import HALF, INTERVAL, JUMP, Outcome, Phase, Replica, Row, World

#: Batches of a run at most: the claim's and two more.
MOST_BATCHES = 3


class Violation(Exception):
    """A promise is broken in this state."""


class Move(NamedTuple):
    """What happened: an action, the place of the replica that did it, and the state after it."""

    action: str
    place: int | None
    world: World


def moves(protocol: Protocol, world: World) -> Iterator[Move]:
    """Yield what can happen next. Raises Violation for what must not happen at all."""
    yield from _outside(world)
    asleep = False
    for place, replica in enumerate(world.replicas):
        if replica.phase is Phase.IDLE:
            if asleep:  # all that sleep are alike
                continue
            asleep = True
        for action, after in _of_replica(protocol, world, place, replica):
            yield Move(action, place, after)


def _outside(world: World) -> Iterator[Move]:
    yield Move("time goes on by half a slot", None, world._replace(time=world.time + HALF))
    for ahead in (-JUMP, 0, JUMP):
        if ahead != world.ahead and (world.ahead == 0 or ahead == 0):
            word = "right again" if ahead == 0 else "ahead" if ahead > 0 else "behind"
            yield Move(f"PostgreSQL's clock is {word}", None, world._replace(ahead=ahead, jumped=True))
    free = tuple(replica._replace(holds=False, entitled=False) for replica in world.replicas)
    if world.orphaned or any(replica.holds for replica in world.replicas):
        yield Move("the lock expires", None, world._replace(replicas=free, orphaned=False))
    if world.mark is not None or world.done is not None:
        wiped = world._replace(replicas=free, orphaned=False, mark=None, done=None)
        yield Move("Redis is wiped", None, wiped)
    word = "an operator resumes" if world.paused else "an operator pauses"
    yield Move(word, None, world._replace(paused=not world.paused))


def _of_replica(protocol: Protocol, world: World, place: int, replica: Replica) -> Iterator[tuple[str, World]]:
    match replica.phase:
        case Phase.IDLE:
            yield from _acquire(protocol, world, place)
            return
        case Phase.HELD:
            yield from _claim(protocol, world, place)
        case Phase.RUNNING:
            yield from _go_on(protocol, world, place)
        case Phase.DONE:
            yield "release, done", release(protocol, world, place)
        case Phase.FAILED | Phase.LOST:
            yield "release, not done", release(protocol, world, place)
        case Phase.FREED:
            yield "write the failure down", write_failure(protocol, world, place)
            yield "cannot write the failure down", world.put(place, Replica())
    if replica.phase in {Phase.HELD, Phase.RUNNING} and not replica.holds:
        yield "find the lock gone", world.put(place, replica._replace(phase=Phase.LOST))
    crashed = world._replace(orphaned=world.orphaned or replica.holds)
    yield "crash", crashed.put(place, Replica())


def _acquire(protocol: Protocol, world: World, place: int) -> Iterator[tuple[str, World]]:
    current = world.time - world.time % INTERVAL
    for word, tick in (("tick", current), ("early tick", current + INTERVAL)):
        if tick - world.time <= HALF and (after := acquire(protocol, world, place, tick, by_hand=False)):
            yield word, after
    if after := acquire(protocol, world, place, None, by_hand=True):
        yield "run by hand", after


def acquire(protocol: Protocol, world: World, place: int, tick: int | None, *, by_hand: bool) -> World | None:
    """ACQUIRE: take the lock; None when that is refused."""
    if protocol.is_done(world, tick):
        return None
    if world.orphaned or any(replica.holds for replica in world.replicas):
        return None
    if any(replica.entitled for replica in world.replicas):
        raise Violation("a lock was taken that somebody else holds, and that did not expire")
    if tick is not None and world.done is not None and tick <= world.done <= world.time + INTERVAL:
        raise Violation("a tick gets the lock although its slot is done and Redis has not forgotten it")
    return world.put(place, Replica(Phase.HELD, tick, by_hand, holds=True, entitled=True))


def _claim(protocol: Protocol, world: World, place: int) -> Iterator[tuple[str, World]]:
    replica = world.replicas[place]
    yield "fail before the claim", world.put(place, replica._replace(phase=Phase.FAILED))
    if world.paused:
        yield "claim: paused", world.put(place, replica._replace(phase=Phase.LOST if replica.by_hand else Phase.DONE))
        return
    after = claim(protocol, world, place)
    if after.replicas[place].phase is not Phase.RUNNING:
        yield "claim: superseded", after
        return
    yield "claim, and the first batch", after
    yield "claim that is the only batch", finish(protocol, after, place, batch=False)
    unheard = replica._replace(phase=Phase.FAILED)
    yield "claim whose commit is not answered", after.put(place, unheard)


def claim(protocol: Protocol, world: World, place: int) -> World:
    """CLAIM, OPEN and the first batch, in one transaction; a run by hand that finds itself superseded tries again."""
    replica = world.replicas[place]
    for _ in range(3 if replica.by_hand else 1):
        slot, far = protocol.due(world, replica), protocol.far_ahead(world)
        if protocol.may_claim(world, replica, slot):
            return _claimed(protocol, world, place, slot)
        if far:
            world = protocol.put_right(world, slot, claimed=False)
    return world.put(place, replica._replace(phase=Phase.LOST if replica.by_hand else Phase.DONE))


def _claimed(protocol: Protocol, world: World, place: int, slot: int) -> World:
    replica, far = world.replicas[place], protocol.far_ahead(world)
    previous, token = protocol.previous(world, slot), protocol.next_token(world)
    covered = 0 if previous is None else max(0, slot // INTERVAL - previous // INTERVAL - 1)
    world = world._replace(last=slot, previous=previous, token=token)
    if far:
        world = protocol.put_right(world, slot, claimed=True)
    world = protocol.interrupt(world)
    if any(row.slot == slot and row.outcome is not Outcome.INTERRUPTED for row in world.rows):
        raise Violation("only the unique index keeps a slot from being run twice")
    run = world.runs + 1
    world = world._replace(runs=run, untold=world.untold + 1, rows=(*world.rows, Row(slot, covered, run, 1)))
    return world.put(place, replica._replace(phase=Phase.RUNNING, token=token, run=run, slot=slot, changed=1))


def _go_on(protocol: Protocol, world: World, place: int) -> Iterator[tuple[str, World]]:
    replica = world.replicas[place]
    failed = replica._replace(phase=Phase.FAILED)
    yield "fail in a batch", world.put(place, failed)
    if protocol.fenced(world, replica):
        yield "batch: fenced", world.put(place, replica._replace(phase=Phase.LOST))
        return
    if replica.changed < MOST_BATCHES:
        after = batch(world, place)
        yield "batch", after
        yield "batch whose commit is not answered", after.put(place, failed)
    after = finish(protocol, world, place)
    yield "finish", after
    yield "finish whose commit is not answered", after.put(place, failed)


def batch(world: World, place: int) -> World:
    """FENCE, a batch and COUNT, in one transaction."""
    replica = world.replicas[place]
    if replica.run != world.runs:
        raise Violation("a run writes after a newer claim")
    rows = tuple(row._replace(changed=row.changed + 1) if row.run == replica.run else row for row in world.rows)
    return world._replace(rows=rows, untold=world.untold + 1).put(place, replica._replace(changed=replica.changed + 1))


def finish(_protocol: Protocol, world: World, place: int, *, batch: bool = True) -> World:
    """FENCE, FINISH and the events, in one transaction, which is the claim's own if there is only one."""
    replica = world.replicas[place]
    if batch and replica.run != world.runs:
        raise Violation("a run writes after a newer claim")
    rows = tuple(row._replace(outcome=Outcome.SUCCESS) if row.run == replica.run else row for row in world.rows)
    world = world._replace(rows=rows, untold=world.untold - replica.changed)
    return world.put(place, replica._replace(phase=Phase.DONE))


def release(protocol: Protocol, world: World, place: int) -> World:
    """RELEASE, with what the run has come to."""
    replica = world.replicas[place]
    if replica.phase is Phase.DONE:
        claimed = None
        if replica.run is not None:
            claimed = replica.slot - replica.slot % INTERVAL if replica.by_hand else replica.slot
        done = [slot for slot in (world.done, replica.tick) if slot is not None]
        world = world._replace(mark=protocol.marked(world, replica.tick, claimed), done=max(done, default=None))
    world = protocol.released(world, place)
    if replica.phase is Phase.FAILED:
        return world.put(place, world.replicas[place]._replace(phase=Phase.FREED, entitled=False))
    return world.put(place, Replica(holds=world.replicas[place].holds))


def write_failure(protocol: Protocol, world: World, place: int) -> World:
    """CLOSE_FAILED and GIVE_BACK; without a claim that is known to be committed, only a row that says so."""
    replica = world.replicas[place]
    if replica.run is not None:
        world = protocol.close_failed(world, replica)
    return world.put(place, Replica())
