"""What all processes of a replica take together."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from app.worker.replica_processes import ReplicaProcesses
from tests.support.waiting import eventually

#: Takes half a second of processor time, then waits for the end of its input.
_BUSY = "import sys, time\nwhile time.process_time() < 0.5: pass\nsys.stdin.read()"


@pytest.mark.skipif(sys.platform != "linux", reason="looks at Linux's /proc")
def test_the_time_of_a_process_that_has_ended_stays_counted() -> None:
    """Such as the one of each delivery by Apprise: a counter that falls counts as one that began anew."""
    processes = ReplicaProcesses(os.getpid())
    before = _cpu(processes)
    with subprocess.Popen([sys.executable, "-c", _BUSY], stdin=subprocess.PIPE) as child:
        eventually(lambda: sum(psutil.Process(child.pid).cpu_times()[:2]) >= 0.4)
        during = _cpu(processes)
        child.communicate()
    assert before + 0.4 <= during <= _cpu(processes)
    assert before + 0.4 <= _cpu(ReplicaProcesses(os.getpid()))


def _cpu(processes: ReplicaProcesses) -> float:
    return next(family.samples[0].value for family in processes.collect() if family.name == "process_cpu_seconds")
