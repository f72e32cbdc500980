"""kill -9, mostly in the middle of a transaction: of a whole process, of its main process or of its child alone."""

from __future__ import annotations

import random
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import psutil

from tests.chaos.faults import points
from tests.chaos.faults.fault import ByTurns, Counted, counting
from tests.chaos.victims import kind_of
from tests.support.waiting import HUNG, eventually

if TYPE_CHECKING:
    from tests.chaos.deployment import Deployment

#: What is killed: all of a process, or only one half of it, which the other half must not outlive for long.
WAYS = ("both", "main", "child")
#: Each way, and each kind of process that writes in transactions.
_KINDS = (*(f"kill of: {way}" for way in WAYS), *(f"kill of: {kind}" for kind in ("worker", "notifier")))


class Killed(NamedTuple):
    """What became of a process that was killed."""

    #: Whether it was this that ended what was to be killed, and it has ended.
    died: bool
    #: What is left of it, which is to end by itself.
    orphans: list[psutil.Process]


def _in_a_transaction(stage: str) -> Counted:
    @counting("kill in a transaction", f"kill at: {stage}", *_KINDS)
    def fault(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
        """Kill a process that is about to write in some relation, and start another in its place.

        It counts when the transaction was still open once the process had ended.
        """
        del over
        with points.closed(deployment, chance.choice(points.STAGES[stage])) as gate:
            waiting = gate.wait(3)
            if not waiting:
                return
            name = chance.choice(waiting)
            with deployment.victims.hurting(name) as victim, deployment.lock:
                if victim is None or not gate.in_transaction([name]):
                    return
                way = _way(deployment, name, chance)
                killed = kill(deployment, name, way)
                if killed.died and gate.in_transaction([name]):
                    for effect in ("in a transaction", f"at: {stage}", f"of: {way}", f"of: {kind_of(name)}"):
                        deployment.log.effect(f"kill {effect}")
                gate.open()
                replace(deployment, name, way)
        outlived(deployment, name, killed.orphans)

    return fault


def _at_random(kind: str) -> Counted:
    @counting("kill at random", f"kill at random: {kind}")
    def fault(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
        """Kill one of this kind, whatever it does, and start another in its place. It counts when it died of that."""
        del over
        with deployment.victims.one_of(kind, chance) as name, deployment.lock:
            if name is None:
                return
            way = _way(deployment, name, chance)
            killed = kill(deployment, name, way)
            if killed.died:
                deployment.log.effect("kill at random")
                deployment.log.effect(f"kill at random: {kind}")
            replace(deployment, name, way)
        outlived(deployment, name, killed.orphans)

    return fault


kill_in_a_transaction = ByTurns(*(_in_a_transaction(stage) for stage in points.STAGES))
kill_at_random = ByTurns(*(_at_random(kind) for kind in ("worker", "notifier", "scheduler", "scheduler")))


def _way(deployment: Deployment, name: str, chance: random.Random) -> str:
    """Choose one: a scheduler has no child, and neither has a process that was started a moment ago."""
    way = chance.choice(WAYS)
    return way if not name.startswith("scheduler") and deployment.processes[name].workers else "both"


def kill(deployment: Deployment, name: str, way: str) -> Killed:
    """Kill a process in this way."""
    process = deployment.processes[name]
    with deployment.log.during("kill", outage=False, note=f"{name} {way}"):
        children = process.workers
        if way == "child":
            for child in children:
                child.kill()
            eventually(lambda: all(_ended(child) for child in children))
            return Killed(bool(children), [psutil.Process(process.popen.pid)])
        if way == "main":
            process.popen.send_signal(signal.SIGKILL)
            return Killed(process.popen.wait(HUNG) == -signal.SIGKILL, children)
        deployment.kill(name)
    return Killed(process.popen.returncode == -signal.SIGKILL, [])


def _ended(process: psutil.Process) -> bool:
    """Return whether it has ended, even if its parent has not noticed."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


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
