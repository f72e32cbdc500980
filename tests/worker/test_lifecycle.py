"""A worker knows its main process, however the system has started it."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys

import pytest

from tests.support.waiting import HUNG

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
