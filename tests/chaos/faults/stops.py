"""SIGSTOP ... SIGCONT: pauses for shorter and longer than the lease, mostly in the middle of a transaction."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import psutil

from tests.chaos.deployment import LEASE_SECONDS, Deployment
from tests.chaos.faults import points
from tests.chaos.faults.fault import ByTurns, Counted, counting

#: Seconds: below the limit of an idle transaction (0.75), between it and the lease (3), and above that.
PAUSES, WEIGHTS = ((0.1, 0.7), (0.8, 2.8), (3.2, 6.0)), (5, 3, 2)
SHORTER, LONGER, SEVERAL = "stop: shorter than the lease", "stop: longer than the lease", "several stopped at once"


def _in_a_transaction(stage: str) -> Counted:
    @counting("stop in a transaction", f"stop at: {stage}", SHORTER, LONGER, SEVERAL)
    def fault(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
        """Stop all who wait to write in some relation (or their children alone), and let them go on later.

        Those count whose transaction was open while they stood still.
        """
        with ExitStack() as stack, points.closed(deployment, chance.choice(points.STAGES[stage])) as gate:
            stopped: list[str] = []
            for name in gate.wait(3):
                victim = stack.enter_context(deployment.victims.hurting(name))
                if victim is not None and stack.enter_context(stop(deployment, name, chance)):
                    stopped.append(name)
            since = time.monotonic()
            landed = gate.in_transaction(stopped)
            hold = chance.random() < 0.1  # the statement runs into its limit meanwhile
            if not hold:
                gate.open()
            _count(deployment, stopped, landed, stage)
            pause = chance.uniform(*chance.choices(PAUSES, WEIGHTS)[0]) if stopped else 0.0
            over.wait(min(pause, 0.6))
            if hold:
                gate.open()
            over.wait(max(0.0, pause - 0.6))
            if landed:
                stood = time.monotonic() - since
                deployment.log.effect(LONGER if stood > _longest_lease(deployment) else SHORTER)

    return fault


def _at_random(kind: str) -> Counted:
    @counting("stop at random", f"stop at random: {kind}")
    def fault(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
        """Stop one of this kind, whatever it does. It counts when it stood still."""
        with deployment.victims.one_of(kind, chance) as name:
            if name is None:
                return
            with stop(deployment, name, chance) as stopped:
                if stopped:
                    deployment.log.effect("stop at random")
                    deployment.log.effect(f"stop at random: {kind}")
                    over.wait(chance.uniform(*chance.choices(PAUSES, WEIGHTS)[0]))

    return fault


stop_in_a_transaction = ByTurns(*(_in_a_transaction(stage) for stage in points.STAGES))
stop_at_random = ByTurns(*(_at_random(kind) for kind in ("worker", "notifier", "scheduler", "scheduler")))


def _longest_lease(deployment: Deployment) -> float:
    """Return the lease that any process may have, seconds: a release that rolls through has another one."""
    return max(LEASE_SECONDS, float(deployment.rolled.get("SB_WORKER_LOCK_LEASE", "0s").rstrip("s")))


@contextmanager
def stop(deployment: Deployment, name: str, chance: random.Random) -> Iterator[bool]:
    """Stop a process or only its children while the body runs; yield whether all that was signalled has stopped."""
    pids = deployment.pids(name)
    if chance.random() < 0.3 and len(pids) > 1:
        pids = pids[1:]
    with deployment.log.during("stop", outage=False, note=name):
        try:
            for pid in pids:
                _signal(pid, signal.SIGSTOP)
            yield bool(pids) and all(_stopped(pid) for pid in pids)
        finally:
            for pid in pids:
                _signal(pid, signal.SIGCONT)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _stopped(pid: int) -> bool:
    """Return whether it stands still: the signal is on its way for a moment."""
    process = psutil.Process(pid)
    return any(process.status() == psutil.STATUS_STOPPED or threading.Event().wait(0.002) for _ in range(100))


def _count(deployment: Deployment, stopped: list[str], landed: set[str], stage: str) -> None:
    deployment.log.effect("stop in a transaction", len(landed))
    deployment.log.effect(f"stop at: {stage}", len(landed))
    if len(landed) > 1:
        deployment.log.effect(SEVERAL)
    if len(landed) < len(stopped):
        deployment.log.effect("stop between transactions", len(stopped) - len(landed))
