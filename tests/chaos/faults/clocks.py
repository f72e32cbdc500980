"""Clocks that are minutes off, and jump: of schedulers, workers, notifiers, Redis and PostgreSQL."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tests.chaos import preload
from tests.chaos.faults.fault import counting
from tests.chaos.victims import kind_of
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.chaos.deployment import Deployment

#: Seconds by which a clock jumps: a second or two, more than a lease, minutes, an hour.
AHEAD: Sequence[int] = (1, 2, 10, 60, 600, 3600)
#: Seconds within which a clock is what it was turned to; less than half of the least that it is moved by.
NEAR = 0.45
OFF = tuple(f"clock off: {seconds} s" for seconds in AHEAD)
#: Seconds in which a process gives a sign of life, unless it is hindered.
PATIENCE = 8.0
_BEATS = """
SELECT extract(epoch FROM clock_ahead)::float8 FROM secrets_bridge_worker.process WHERE pid = ANY (%s)
"""


@counting(*(f"clock of a {kind}" for kind in ("scheduler", "worker", "notifier")), *OFF, needs_gcc=True)
def process_clocks_jump(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """Move the clocks of some processes, until each says that it is off; then to the other side, and back."""
    if preload.GCC is None:
        return
    names = [chance.choice(deployment.names(kind)) for kind in ("scheduler", "worker", "notifier")]
    moved = {name: _by(chance) for name in chance.sample(names, chance.randint(2, 3))}
    note = ", ".join(f"{name} {by:+d}" for name, by in moved.items())
    with deployment.clocks_lock, deployment.log.during("clock", outage=False, note=note):
        try:
            for name, by in moved.items():
                deployment.clock(name).turn(by)
            _wait_until_seen(deployment, moved, over)
            for name, by in moved.items():
                deployment.clock(name).turn(-by)
            over.wait(chance.uniform(0.1, 2.0))
        finally:
            for name in moved:
                deployment.clock(name).turn(0)


def _wait_until_seen(deployment: Deployment, moved: Mapping[str, int], over: threading.Event) -> None:
    """Wait, not for long, until the processes have said, by their rows, that their clocks are off; count those."""
    unseen, until = dict(moved), time.monotonic() + PATIENCE
    with deployment.sql() as sql:
        while unseen and time.monotonic() < until and not over.wait(0.2):
            for name, by in list(unseen.items()):
                said = [ahead for (ahead,) in sql.execute(_BEATS, [deployment.pids(name)])]
                if any(abs(ahead - by) < NEAR for ahead in said):
                    del unseen[name]
                    deployment.log.effect(f"clock of a {kind_of(name)}")
                    deployment.log.effect(f"clock off: {abs(by)} s")


@counting("clock of redis", *OFF, needs_gcc=True)
def redis_clock_jumps(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """Redis's clock jumps, forth and back: locks end at once, or not at all."""
    if preload.GCC is None:
        return
    with deployment.redis_lock, deployment.clocks_lock, deployment.client() as client:

        def off() -> float:
            seconds, micros = client.time()
            return float(seconds + micros / 1e6 - time.time())

        _jump(deployment, "redis", chance, over, off)


@counting("clock of postgres", *OFF, needs_gcc=True)
def postgres_clock_jumps(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """PostgreSQL's clock jumps, forth and back: slots are run too early, and are due again."""
    if preload.GCC is None:
        return
    with deployment.postgres_lock, deployment.clocks_lock, deployment.sql() as sql:

        def off() -> float:
            row = sql.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
            assert row is not None
            return float(row[0] - time.time())

        _jump(deployment, "postgres", chance, over, off)


def _jump(
    deployment: Deployment, name: str, chance: random.Random, over: threading.Event, off: Callable[[], float]
) -> None:
    with deployment.log.during("clock", outage=False, note=name) as fault:
        try:
            for _ in range(chance.randint(1, 2)):
                by = _by(chance)
                fault.note += f" {by:+d}"
                deployment.clock(name).turn(by)
                eventually(lambda: abs(off() - by) < NEAR)  # noqa: B023 - it is called within the turn
                deployment.log.effect(f"clock of {name}")
                deployment.log.effect(f"clock off: {abs(by)} s")
                over.wait(chance.uniform(0.5, 6.0))
        finally:
            deployment.clock(name).turn(0)
            eventually(lambda: abs(off()) < NEAR)


def _by(chance: random.Random) -> int:
    return chance.choice(AHEAD) * chance.choice((1, -1))
