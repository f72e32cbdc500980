"""A deployment leaves no process behind, however the one ends that made it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.support.processes import ROOT, process_status
from tests.support.waiting import HUNG_PROCESS, eventually

#: Makes a small deployment, stops a process, starts another from a thread, says so, and waits for its end.
CHILD = """
import signal, sys, threading
from pathlib import Path
from tests.chaos.deployment import Deployment, Plan
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that puts us into the background has it ignored
try:
    with Deployment(Path(sys.argv[1]), Plan(numbers={"worker": 1, "scheduler": 1})) as made:
        made.signal("worker0", signal.SIGSTOP)
        threading.Thread(target=made.start, args=("notifier0",)).start()
        print("up", flush=True)
        signal.pause()
except KeyboardInterrupt:
    sys.exit(3)
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sb-leave-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 3), (signal.SIGKILL, -9)], ids=["Ctrl-C", "kill -9"])
def test_nothing_is_left_after(number: signal.Signals, status: int, directory: Path) -> None:
    words = [sys.executable, "-c", CHILD, str(directory)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (
        subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, start_new_session=True) as child,
        ExitStack() as stack,
    ):
        stack.callback(child.kill)
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        started = psutil.Process(child.pid).children(recursive=True)
        eventually(lambda: psutil.STATUS_STOPPED in {process_status(process.pid) for process in started})

        child.send_signal(number)

        assert child.wait(HUNG_PROCESS) == status
        eventually(lambda: not [process for process in started if process.is_running()])
