"""A state of the model: two clocks, the fence, the ledger, the lock, and what each replica is at.

Times are whole microseconds: a run by hand may take a moment between two slots. What is marked as known to the model
alone is what the replicas cannot see, and what the invariants are judged by.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

#: How long a slot is, and half of it: so short that a pause made under one clock holds under each other one.
INTERVAL, HALF = 8_000_000, 4_000_000
#: How far the database's clock jumps: more than two slots.
JUMP = 2 * INTERVAL + HALF


class Phase(IntEnum):
    """What a replica is at, between two transactions."""

    IDLE = 0
    #: It has the lock, or believes so, and has claimed nothing.
    HELD = 1
    #: Its claim is committed, and it is between two batches.
    RUNNING = 2
    #: Its run is over, well or because nothing was due, and the lock is not released.
    DONE = 3
    #: Its run has failed, and the lock is not released.
    FAILED = 4
    #: It has released the lock, and is to write its failure down.
    FREED = 5
    #: It knows that the lock is gone.
    LOST = 6


class Outcome(IntEnum):
    """How a run ended. Failures leave the model's ledger: nothing depends on them."""

    RUNNING = 0
    SUCCESS = 1
    INTERRUPTED = 2


class Row(NamedTuple):
    """A row of the ledger."""

    slot: int
    covered: int
    #: Known to the model alone: the number of the claim.
    run: int
    changed: int = 0
    outcome: Outcome = Outcome.RUNNING


class Replica(NamedTuple):
    """A replica, or a thread of one: it does one run at a time."""

    phase: Phase = Phase.IDLE
    #: The slot of its tick; None for a run by hand.
    tick: int | None = None
    by_hand: bool = False
    token: int | None = None
    run: int | None = None
    slot: int = 0
    #: What it knows of what it has changed.
    changed: int = 0
    #: Whether Redis has its token under the lock's key.
    holds: bool = False
    #: Known to the model alone: whether nothing but itself may end that.
    entitled: bool = False


class World(NamedTuple):
    """A state."""

    replicas: tuple[Replica, ...]
    #: Redis's clock, which is right, and how far PostgreSQL's is ahead of it.
    time: int = 0
    ahead: int = 0
    #: sweep_state; None before the first claim.
    last: int | None = None
    previous: int | None = None
    token: int = 0
    #: sweep_run without its failures, in the order of claims.
    rows: tuple[Row, ...] = ()
    paused: bool = False
    #: Whether the lock is held by somebody who has crashed.
    orphaned: bool = False
    mark: int | None = None
    #: Known to the model alone: how often was claimed, rows that were changed and not reported, the newest slot that
    #: this Redis was told to be done, whether PostgreSQL's clock has ever jumped.
    runs: int = 0
    untold: int = 0
    done: int | None = None
    jumped: bool = False

    @property
    def now(self) -> int:
        """PostgreSQL's clock."""
        return self.time + self.ahead

    def put(self, place: int, replica: Replica) -> World:
        """Return the state with this replica in its place."""
        return self._replace(replicas=(*self.replicas[:place], replica, *self.replicas[place + 1 :]))


def begin(replicas: int) -> tuple[World, World]:
    """Return the first states: nothing was ever run, and the slot before this one was."""
    new = World((Replica(),) * replicas)
    before = Row(-INTERVAL, 0, 0, 1, Outcome.SUCCESS)
    return new, new._replace(last=-INTERVAL, previous=-2 * INTERVAL, rows=(before,))


def canonical(world: World) -> World:
    """Return the one of all states that differ only by the replicas' order, the slot of the epoch and lost numbers."""
    shift, runs, token = world.time - world.time % INTERVAL, world.runs, world.token

    def moved(time: int | None) -> int | None:
        return None if time is None else time - shift

    replicas = sorted(
        (
            replica._replace(
                tick=moved(replica.tick),
                slot=replica.slot - shift if replica.run is not None else 0,
                run=None if replica.run is None else replica.run - runs,
                token=None if replica.token is None else replica.token - token,
            )
            for replica in world.replicas
        ),
        key=_order,
    )
    return world._replace(
        replicas=tuple(replicas),
        time=world.time - shift,
        last=moved(world.last),
        previous=moved(world.previous),
        token=0,
        rows=tuple(row._replace(slot=row.slot - shift, run=row.run - runs) for row in world.rows),
        mark=moved(world.mark),
        runs=0,
        done=moved(world.done),
    )


def order(replicas: Iterable[Replica]) -> list[int]:
    """Return the places of these replicas in the canonical order."""
    return [place for place, _ in sorted(enumerate(replicas), key=lambda pair: _order(pair[1]))]


def _order(replica: Replica) -> tuple[int, ...]:
    return tuple(-(10**12) if value is None else int(value) for value in replica)


def index(slot: int) -> int:
    """Return the number of the cadence's slot that a moment lies in."""
    return slot // INTERVAL
