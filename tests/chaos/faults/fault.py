"""What a fault is: a function that strikes a deployment once, what effects it counts, and how often it is called."""

from __future__ import annotations

import random
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import psutil
import psycopg
import redis

if TYPE_CHECKING:
    from tests.chaos.deployment import Deployment

StrikeOnce: TypeAlias = "Callable[[Deployment, random.Random, threading.Event], None]"


@dataclass(frozen=True)
class Counted:
    """A fault with the kinds of effects that it counts, each of which a round that it strikes in asks for."""

    strike: StrikeOnce
    kinds: tuple[str, ...]
    #: Whether it does nothing where no library can be compiled.
    needs_gcc: bool = False

    def __call__(self, deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
        self.strike(deployment, chance, over)

    @property
    def kinds_by_gcc(self) -> tuple[str, ...]:
        """Those of the kinds that there are with gcc alone."""
        return self.kinds if self.needs_gcc else ()


def counting(*kinds: str, needs_gcc: bool = False) -> Callable[[StrikeOnce], Counted]:
    """Say which kinds of effects a fault counts."""
    return lambda strike: Counted(strike, kinds, needs_gcc)


class ByTurns:
    """Faults that strike one after the other: each one once before any comes again."""

    def __init__(self, *faults: Counted) -> None:
        self._faults = faults
        self._left: WeakKeyDictionary[random.Random, list[Counted]] = WeakKeyDictionary()

    def __call__(self, deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
        left = self._left.setdefault(chance, [])
        if not left:
            left += chance.sample(self._faults, len(self._faults))
        left.pop()(deployment, chance, over)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of effects of all of them."""
        return tuple(dict.fromkeys(kind for fault in self._faults for kind in fault.kinds))

    @property
    def kinds_by_gcc(self) -> tuple[str, ...]:
        """Those of the kinds that there are with gcc alone."""
        return tuple(dict.fromkeys(kind for fault in self._faults for kind in fault.kinds_by_gcc))


class Strike(NamedTuple):
    """A fault and its pace."""

    name: str
    strike: Counted | ByTurns
    #: Seconds from one strike to the next, on the average.
    every: float


def keep_striking(strike: Strike, deployment: Deployment, seed: int, over: threading.Event) -> None:
    """Strike until the round is over. What finds a server or a process gone has missed, by another fault's doing."""
    chance = random.Random(f"{seed}/{strike.name}")
    while not over.wait(chance.uniform(0.5, 1.5) * strike.every):
        try:
            strike.strike(deployment, chance, over)
        except (psycopg.Error, redis.RedisError, psutil.Error):
            deployment.log.effect(f"{strike.name}: missed")
        except Exception as error:  # noqa: BLE001 - a fault that strikes no more must not go unseen
            where = traceback.extract_tb(error.__traceback__)[-1]
            deployment.log.broken.append(f"{strike.name}: {error!r} at {Path(where.filename).name}:{where.lineno}")
