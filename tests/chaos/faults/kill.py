"""kill -9, mostly in the middle of a transaction: of a whole process, of its main process or of its child alone."""

from __future__ import annotations

import random
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil

from tests.chaos.faults import points
from tests.support.waiting import HUNG

if TYPE_CHECKING:
    from tests.chaos.deployment import Deployment

#: What is killed: all of a process, or only one half of it, which the other half must not outlive for long.
WAYS = ("both", "main", "child")


def kill_in_a_transaction(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """Kill a process that is about to write in some relation, and start another in its place."""
    del over
    stage = chance.choice(points.STAGES)
    with points.closed(deployment, chance.choice(stage)) as gate:
        waiting = gate.wait(3)
        if not waiting:
            return
        name = chance.choice(waiting)
        with deployment.victims.hurting(name) as victim, deployment.lock:
            if victim is None or not gate.in_transaction([name]):
                return
            way = _way(deployment, name, chance)
            orphans = kill(deployment, name, way)
            gate.open()
            deployment.log.effect("kill in a transaction")
            deployment.log.effect(f"kill in a transaction: {way}")
            deployment.log.effect(f"kill in a transaction: {name.rstrip('0123456789')}")
            replace(deployment, name, way)
    outlived(deployment, name, orphans)


def kill_at_random(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """Kill a scheduler, a notifier or a worker, whatever it does, and start another in its place."""
    del over
    kind = chance.choices(("worker", "notifier", "scheduler"), (1, 1, 2))[0]
    with deployment.victims.one_of(kind, chance) as name, deployment.lock:
        if name is None:
            return
        way = _way(deployment, name, chance)
        orphans = kill(deployment, name, way)
        deployment.log.effect(f"kill at random: {kind}")
        replace(deployment, name, way)
    outlived(deployment, name, orphans)


def _way(deployment: Deployment, name: str, chance: random.Random) -> str:
    """Choose one: a scheduler has no child, and neither has a process that was started a moment ago."""
    way = chance.choice(WAYS)
    return way if not name.startswith("scheduler") and deployment.processes[name].workers else "both"


def kill(deployment: Deployment, name: str, way: str) -> list[psutil.Process]:
    """Kill a process in this way; return what is left of it, which is to end by itself."""
    process = deployment.processes[name]
    with deployment.log.during("kill", outage=False, note=f"{name} {way}"):
        if way == "child":
            for child in process.workers:
                child.kill()
            return [psutil.Process(process.popen.pid)]
        if way == "main":
            children = process.workers
            process.popen.send_signal(signal.SIGKILL)
            return children
        deployment.kill(name)
    return []


def replace(deployment: Deployment, name: str, way: str) -> None:
    """Start another in the place of one that was killed; what is left of the old one may still be ending."""
    if way == "child":
        deployment.processes[name].popen.wait(HUNG)
    if way != "both":
        deployment.give_up(name)
    deployment.start(name)


def outlived(deployment: Deployment, name: str, orphans: list[psutil.Process]) -> None:
    """Note when one half of a process goes on without the other for much longer than it may take to end."""
    _, left = psutil.wait_procs(orphans, timeout=HUNG)
    for orphan in left:
        deployment.deaths.append(f"{name} was half killed, and the other half goes on")
        with suppress(psutil.Error):
            orphan.kill()
