"""Deployments that roll through: other intervals, another lease, one process after the other."""

from __future__ import annotations

import random
import signal
import threading
from datetime import timedelta
from http import HTTPStatus

from app.storage.postgres import only_row
from tests.chaos.deployment import LEASE_SECONDS, SETTINGS, Deployment
from tests.chaos.faults.fault import counting
from tests.chaos.victims import kind_of
from tests.support.waiting import HUNG_PROCESS, eventually

#: What is rolled out in turn: the interval of all sweepers and the lease, seconds.
RELEASES = ((2, LEASE_SECONDS), (1, LEASE_SECONDS + 1), (3, LEASE_SECONDS), (1, LEASE_SECONDS))
#: How processes end by SIGTERM. A scheduler that is still starting ends of it, as one does that has nothing to finish.
ENDINGS = {"scheduler": (0, -signal.SIGTERM), "worker": (0,), "notifier": (0,)}
INTERVALS = tuple(timedelta(seconds=seconds) for seconds in sorted({seconds for seconds, _ in RELEASES}))
_VARIABLES = [name for name in SETTINGS if name.startswith("SB_SWEEP_") and name.endswith("_INTERVAL")]


_NEWEST = "SELECT coalesce(max(n), 0) FROM chaos.change"
_CADENCES = "SELECT count(DISTINCT cadence) FROM chaos.change WHERE relation = 'sweep_run' AND op = 'insert' AND n > %s"


@counting("rolling", "intervals mixed")
def roll(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """Roll the next release out: each process ends by SIGTERM, and another one takes its place.

    Each counts that had lived until then, and ended with status 0; and the whole when runs have begun meanwhile by
    different intervals.
    """
    with deployment.sql() as sql:
        (since,) = only_row(sql.execute(_NEWEST))
    interval, lease = RELEASES[deployment.releases % len(RELEASES)]
    deployment.releases += 1
    deployment.rolled = {**dict.fromkeys(_VARIABLES, f"{interval}s"), "SB_WORKER_LOCK_LEASE": f"{lease:g}s"}
    names = [name for kind in ("scheduler", "worker", "notifier") for name in deployment.names(kind)]
    with deployment.log.during("rolling", outage=False, note=f"{interval}s"):
        for name in names:
            if over.wait(chance.uniform(0, 0.5)):
                break
            replace(deployment, name)
    with deployment.sql() as sql:
        (cadences,) = only_row(sql.execute(_CADENCES, [since]))
    deployment.log.effect("intervals mixed", int(cadences > 1))


@counting("rolling")
def replace_one(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """Replace any process, with the settings that it had."""
    del over
    with deployment.log.during("rolling", outage=False, note="as before"):
        replace(deployment, chance.choice(sorted(deployment.processes)))


def replace(deployment: Deployment, name: str) -> None:
    """End a process orderly and start another in its place; one that another fault is at is left to that."""
    with deployment.victims.hurting(name) as victim:
        process = deployment.processes.get(name)
        if victim is None or process is None:
            return
        if process.popen.poll() is None:
            if not name.startswith("scheduler") and process.get("/healthz").status_code != HTTPStatus.OK:
                return  # it is not up yet
            process.popen.send_signal(signal.SIGTERM)
            status = process.popen.wait(HUNG_PROCESS)
            if status in ENDINGS[kind_of(name)]:
                deployment.log.effect("rolling")
            else:
                deployment.remarks.append(f"{name} ended with status {status} when it was replaced")
        with deployment.lock:
            deployment.give_up(name)
            deployment.start(name)
        if not name.startswith("scheduler"):
            eventually(lambda: _ready(deployment, name))


def _ready(deployment: Deployment, name: str) -> bool:
    process = deployment.processes.get(name)  # none for a moment, in which it is started again
    return process is not None and process.get("/readyz").status_code == 200
