"""What a network can do to one process, or to all: resets, silence, delay, answers that come late, in part or never."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from tests.chaos.faults.fault import ByTurns, Counted, counting

if TYPE_CHECKING:
    from tests.chaos.deployment import Deployment
    from tests.support.proxy import Proxy

#: Does its damage to connections, and waits.
Damage: TypeAlias = "Callable[[list[Proxy], random.Random, Callable[[float], object]], None]"

#: Seconds: shorter and longer than the lease.
SHORT, LONG = 0.3, 5.0
#: The most by which each piece is late in one direction, seconds.
LAG = 0.25


def _reset(proxies: list[Proxy], chance: random.Random, wait: Callable[[float], object]) -> None:
    del chance, wait
    for proxy in proxies:
        proxy.hurt += proxy.reset()


def _cut(proxies: list[Proxy], chance: random.Random, wait: Callable[[float], object]) -> None:
    """In the middle of an answer, even of a single message."""
    for proxy in proxies:
        proxy.cut_after(chance.randrange(400))
    wait(1.0)


def _late(proxies: list[Proxy], chance: random.Random, wait: Callable[[float], object]) -> None:
    """Requests arrive and are done; their answers come later."""
    for proxy in proxies:
        proxy.stall()
    wait(chance.uniform(SHORT, LONG))
    for proxy in proxies:
        proxy.flow()


def _never(proxies: list[Proxy], chance: random.Random, wait: Callable[[float], object]) -> None:
    """Requests arrive and are done; their answers are lost with the connection: a half-open one."""
    for proxy in proxies:
        proxy.stall()
    wait(chance.uniform(SHORT, LONG))
    for proxy in proxies:
        proxy.reset()


def _silent(proxies: list[Proxy], chance: random.Random, wait: Callable[[float], object]) -> None:
    """Nothing passes on the connections that there are, and nothing is closed. New ones work."""
    for proxy in proxies:
        proxy.silence()
    wait(chance.uniform(SHORT, LONG))
    for proxy in proxies:
        proxy.end_silence()


def _parted(proxies: list[Proxy], chance: random.Random, wait: Callable[[float], object]) -> None:
    """Nothing passes on any connection, new ones as well."""
    for proxy in proxies:
        proxy.deaf = True
    try:
        _silent(proxies, chance, wait)
    finally:
        for proxy in proxies:
            proxy.deaf = False
            proxy.end_silence()


def _slow(proxies: list[Proxy], chance: random.Random, wait: Callable[[float], object]) -> None:
    for proxy in proxies:
        proxy.lag = chance.uniform(0.01, LAG)
    wait(chance.uniform(SHORT, LONG))
    for proxy in proxies:
        proxy.lag = 0.0


DAMAGES: dict[str, Damage] = {
    "reset": _reset,
    "cut": _cut,
    "late answers": _late,
    "lost answers": _never,
    "silent": _silent,
    "parted": _parted,
    "slow": _slow,
}
#: Those in which all stand still, if it is done to all.
_STILL = {"late answers", "lost answers", "silent", "parted"}


def to_one(name: str) -> Counted:
    """Return the fault that does this to one process, whose replicas are well."""

    @counting("network", f"network: {name}")
    def fault(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
        kind = chance.choices(("worker", "notifier", "scheduler"), (3, 1, 1))[0]
        with deployment.victims.one_of(kind, chance) as victim:
            if victim is None:
                return
            sides = [deployment.postgres_proxies[victim], deployment.redis_proxies[victim]]
            proxies = chance.choice([sides[:1], sides[1:], sides])
            with deployment.log.during("network", outage=False, note=f"{name}: {victim}"):
                hurt = hurting(name, proxies, chance, over.wait)
        _count(deployment, name, hurt)

    return fault


def to_all(name: str) -> Counted:
    """Return the fault that does this to all processes, between them and one server or both."""

    @counting("network", f"network: {name}, to all")
    def fault(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
        sides = [list(deployment.postgres_proxies.values()), list(deployment.redis_proxies.values())]
        proxies = chance.choice([sides[0], sides[1], sides[0] + sides[1]])
        with deployment.log.during("network", outage=name in _STILL, note=f"{name}: all"):
            hurt = hurting(name, proxies, chance, over.wait)
        _count(deployment, f"{name}, to all", hurt)

    return fault


def hurting(name: str, proxies: list[Proxy], chance: random.Random, wait: Callable[[float], object]) -> bool:
    """Do this damage; return whether anything met it: connections that are silent anyway do not notice."""
    before = sum(proxy.hurt for proxy in proxies)
    DAMAGES[name](proxies, chance, wait)
    return sum(proxy.hurt for proxy in proxies) > before


def _count(deployment: Deployment, name: str, hurt: bool) -> None:
    deployment.log.effect("network", int(hurt))
    deployment.log.effect(f"network: {name}", int(hurt))


network_of_one = ByTurns(*(to_one(name) for name in DAMAGES))
network_of_all = ByTurns(*(to_all(name) for name in DAMAGES))
