"""`make demo` as a newcomer meets it: what it says, how it ends, and that nothing stays behind."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from app.demo.ending import LINE
from tests.support.processes import ROOT, environment
from tests.support.waiting import HUNG_PROCESS, eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at what Linux's kernel ends")
READY = "Ctrl-C ends it."


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a directory for all that is temporary; a short one, for sockets."""
    path = Path("/tmp") / f"sb-test-{os.getpid()}"
    path.mkdir()
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


def _environment(place: Path, **more: str) -> dict[str, str]:
    env = environment("", "", TMPDIR=str(place), TERM="xterm", **more)
    return {name: value for name, value in env.items() if name not in ("DATABASE_URL", "REDIS_URL")}


class Terminal:
    """A program in a terminal of its own, whose Ctrl-C goes where a terminal's goes."""

    def __init__(self, words: list[str], env: dict[str, str]) -> None:
        self.text = ""
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.execvpe(words[0], words, env)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._descriptor, 1 << 16):
                self.text += data.decode(errors="replace")
        except OSError:  # its other end is closed
            return

    def wait_for(self, text: str) -> None:
        """Wait until it has shown this."""
        eventually(lambda: text in self.text, HUNG_PROCESS)

    def type(self, keys: bytes) -> None:
        """Type these keys."""
        os.write(self._descriptor, keys)

    def status(self) -> int:
        """Wait for its end and return its status."""
        _, status = os.waitpid(self.pid, 0)
        self._reader.join(5)
        os.close(self._descriptor)
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def made(place: Path, tmp_path: Path) -> Callable[[], Terminal]:
    """Return a function that runs the demo through make, in a terminal."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    makefile = tmp_path / "Makefile"
    makefile.write_text(f"demo:\n\t@{sys.executable} -m app.demo\n")
    return lambda: Terminal(["make", "--no-print-directory", "-f", str(makefile), "demo"], _environment(place))


@pytest.mark.parametrize("moment", [READY, "SWEEPERS"])
def test_ctrl_c_is_answered_and_ends_with_status_0_through_make(
    moment: str, made: Callable[[], Terminal], place: Path
) -> None:
    terminal = made()
    terminal.wait_for(moment)
    terminal.type(b"\x03")
    terminal.wait_for(LINE)
    if moment != READY:
        terminal.type(b"\x03")  # which must not cut the clean-up
    assert terminal.status() == 0, terminal.text[-4000:]
    assert "***" not in terminal.text
    assert "Traceback" not in terminal.text
    assert list(place.iterdir()) == []


_IN_A_STATEMENT = """
import os, signal, sys, threading
import psycopg
from app.demo import ending
ending.listen()
ending.defer()
with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    while not ending.asked():
        connection.execute("SELECT pg_sleep(0.5)")
    print(connection.execute("SELECT 'of use'").fetchone()[0])
ending.check()
"""


def test_a_stop_while_a_statement_runs_leaves_its_connection_of_use(database: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IN_A_STATEMENT, database],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HUNG_PROCESS,
        check=False,
    )
    assert done.stdout == "of use\n", done.stderr
    assert done.stderr.count(LINE) == 1
    assert "KeyboardInterrupt" in done.stderr  # by the check


def test_after_a_kill_nothing_is_left(made: Callable[[], Terminal], place: Path) -> None:
    terminal = made()
    terminal.wait_for("export REDIS_URL=")
    terminal.wait_for("SWEEPERS")
    (demo,) = [child for child in psutil.Process(terminal.pid).children() if "app.demo" in child.cmdline()]
    below = demo.children(recursive=True)
    assert len(below) > 6
    demo.kill()
    assert terminal.status() != 0
    eventually(lambda: not any(process.is_running() for process in below))
    eventually(lambda: list(place.iterdir()) == [])


def _printed(place: Path, **more: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "app.demo"],
        cwd=ROOT,
        env=_environment(place, DEMO_SECONDS="8", **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=HUNG_PROCESS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done


def test_json_is_printed_if_that_is_wanted(place: Path) -> None:
    records = [json.loads(line) for line in _printed(place, DEMO_JSON="1").stdout.splitlines() if line.startswith("{")]
    assert {"wraps-expired", "receiver", "argocd"} <= {record["name"] for record in records}


def test_without_a_terminal_it_prints_what_one_can_read(place: Path) -> None:
    done = _printed(place)
    lines = done.stdout.splitlines()
    assert not [line for line in lines if line.startswith("{")]
    for heading in ("SWEEPERS", "NOTIFICATIONS", "RECEIVER (stand-in)", "ARGOCD (stand-in)"):
        assert [line for line in lines if line.startswith(heading)]
    assert "stand-ins of this demo, and fail on purpose" in done.stdout
    assert [line for line in lines if line.startswith("  export DATABASE_URL=postgres://postgres@127.0.0.1:")]
    assert list(place.iterdir()) == []


def test_a_stop_of_the_whole_group_while_servers_start_ends_with_status_0(place: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "app.demo"],
        cwd=ROOT,
        env=_environment(place),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert READY in process.stdout.readline()
    eventually(lambda: list(place.glob("sb-demo-*/pg")))
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=HUNG_PROCESS)
    assert process.returncode == 0, out + errors
    assert errors.strip() == LINE
    assert list(place.iterdir()) == []
