"""A worker knows its main process, however the system has started it."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, lives
from tests.support.waiting import HUNG, eventually

CHILD = """
import multiprocessing, sys
from app.worker.middleware.lifecycle import _leave_if_orphaned
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    child = multiprocessing.Process(target=_leave_if_orphaned)
    child.start()
    child.join()
    sys.exit(child.exitcode)
"""


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_worker_whose_main_process_lives_is_no_orphan(method: str) -> None:
    """From Python 3.14 on the system's parent of a worker is a fork server."""
    assert subprocess.run([sys.executable, "-c", CHILD, method], timeout=HUNG, check=False).returncode == 0


ORPHAN = """
import multiprocessing, os, sys, time
from app.worker.middleware.lifecycle import _end_with_main_process

def work(ready):
    _end_with_main_process()
    ready.send(os.getpid())
    time.sleep(%d)

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    workers = []
    for _ in range(2):
        here, there = multiprocessing.Pipe()
        multiprocessing.Process(target=work, args=(there,)).start()
        print(here.recv(), flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only a fork server's workers notice")
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_workers_end_with_a_main_process_that_is_killed(method: str, tmp_path: Path) -> None:
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN % HUNG)
    done = subprocess.run(
        [sys.executable, script, method],
        stdout=subprocess.PIPE,
        timeout=HUNG,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2
    eventually(lambda: not any(map(lives, workers)))
