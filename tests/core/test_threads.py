"""A background thread that fails is not missed in silence."""

from __future__ import annotations

import subprocess
import sys

from tests.support.waiting import HUNG


def test_a_thread_that_raises_ends_the_process_with_one_line() -> None:
    code = "import time; from app.core import threads; threads.start('keeper', lambda: 1 / 0); time.sleep(600)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HUNG, check=False)
    assert done.returncode == 1
    assert (done.stdout + done.stderr).count("a background thread failed") == 1
    assert "ZeroDivisionError" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
