"""What a fault is: a function that strikes a deployment once, and how often it is called."""

from __future__ import annotations

import random
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import psutil
import psycopg
import redis

if TYPE_CHECKING:
    from tests.chaos.deployment import Deployment

StrikeOnce: TypeAlias = "Callable[[Deployment, random.Random, threading.Event], None]"


class Strike(NamedTuple):
    """A fault and its pace."""

    name: str
    strike: StrikeOnce
    #: Seconds from one strike to the next, on the average.
    every: float


class ByTurns:
    """Faults that strike one after the other: each one once before any comes again."""

    def __init__(self, *faults: StrikeOnce) -> None:
        self._faults = faults
        self._left: WeakKeyDictionary[random.Random, list[StrikeOnce]] = WeakKeyDictionary()

    def __call__(self, deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
        left = self._left.setdefault(chance, [])
        if not left:
            left += chance.sample(self._faults, len(self._faults))
        left.pop()(deployment, chance, over)


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
