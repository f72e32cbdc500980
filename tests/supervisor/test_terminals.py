"""Log lines on a terminal: whole and coloured for who reads it, and no wait for who does not."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import subprocess
import sys
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import structlog

from app.core.logging import configure_logging
from app.supervisor.output import Output
from tests.support.processes import ROOT
from tests.support.waiting import HUNG, HUNG_PROCESS, eventually

_STOP, _GO = b"\x13", b"\x11"


class Terminal(NamedTuple):
    """The end of who reads, and the other one."""

    reader: int
    writer: int

    def fill(self) -> None:
        """Leave hardly any room in it: the kernel moves what it has by and by."""
        own = os.open(os.ttyname(self.writer), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        with suppress(BlockingIOError):
            while True:
                os.write(own, b"x" * 64)
        os.close(own)

    def stop(self) -> None:
        """Do what Ctrl-S does."""
        os.write(self.reader, _STOP)

    def read(self) -> bytes:
        """Return what is there."""
        os.set_blocking(self.reader, False)
        found = b""
        with suppress(BlockingIOError):
            while piece := os.read(self.reader, 1 << 16):
                found += piece
        return found


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    reader, writer = pty.openpty()
    yield Terminal(reader, writer)
    for end in (reader, writer):
        os.close(end)


def _ends(call: Callable[[], object], terminal: Terminal) -> None:
    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    caller.join(HUNG)
    waits = caller.is_alive()
    while caller.is_alive():  # let it go
        os.write(terminal.reader, _GO)
        terminal.read()
        caller.join(0.01)
    assert not waits


@pytest.mark.parametrize("stop_reading", [Terminal.fill, Terminal.stop])
def test_who_does_not_read_costs_lines_and_no_time_and_is_told_how_many(
    stop_reading: Callable[[Terminal], None], terminal: Terminal
) -> None:
    flags = fcntl.fcntl(terminal.writer, fcntl.F_GETFL)
    with os.fdopen(os.dup(terminal.writer), "w") as stream:
        output = Output(stream)
        output.write("first\n")
        assert terminal.read() == b"first\r\n"
        stop_reading(terminal)

        def write() -> None:
            for number in range(3000):
                output.write(f"line {number} {'y' * 100}\n")

        _ends(write, terminal)
        os.write(terminal.reader, _GO)
        got = terminal.read()

        def read_again() -> bool:
            nonlocal got
            output.write("read again\n")
            got += terminal.read()
            return b"read again\r\n" in got

        eventually(read_again)
        lines = got.decode().splitlines()
    told = [int(match[1]) for line in lines if (match := re.search(r"nobody read them \(lines: (\d+)\)", line))]
    whole = [line for line in lines if line.endswith("y" * 100)]
    again = [line for line in lines if line == "read again"]
    assert told
    assert 3000 <= len(whole) + sum(told) + len(again) <= 3000 + len(again) * 2
    assert len(whole) < 300
    assert fcntl.fcntl(terminal.writer, fcntl.F_GETFL) == flags
    assert os.get_blocking(terminal.writer)


def test_who_reads_gets_each_line_whole_and_coloured(terminal: Terminal) -> None:
    got: list[bytes] = []

    def read() -> None:
        with suppress(OSError):
            while not b"".join(got[-2:]).endswith(b"the end\r\n"):
                got.append(os.read(terminal.reader, 1 << 16))

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    with os.fdopen(os.dup(terminal.writer), "w") as stream:
        configure_logging("info", stream)
        for number in range(200):
            structlog.get_logger("x").info("worker ready", number=number)
        stream.write("the end\n")
    reading.join(HUNG)
    *lines, _ = b"".join(got).decode().splitlines()
    assert len(lines) == 200
    for number, line in enumerate(lines):
        assert "worker ready" in line
        assert line.endswith(f"\x1b[35m{number}\x1b[0m")


def test_a_writer_is_not_led_by_the_terminal_that_it_writes_to(terminal: Terminal) -> None:
    """A process without a terminal gets one by opening it, and then its signals."""
    code = """
import os, sys
from app.supervisor.output import Output
os.setsid()
Output(sys.stderr).write("x\\n")
try:
    os.open("/dev/tty", os.O_RDONLY)
except OSError:
    sys.exit(0)
sys.exit(1)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, stderr=terminal.writer)
    assert done.returncode == 0
    assert terminal.read() == b"x\r\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("stop_reading", [Terminal.fill, Terminal.stop])
def test_a_terminal_of_another_user_is_asked_for_room(
    stop_reading: Callable[[Terminal], None], terminal: Terminal
) -> None:
    tty.setraw(terminal.writer)
    code = """
import os, sys
from app.supervisor.output import Output
os.setuid(65534)
output = Output(sys.stderr)
assert output._number == 2
output.write("first\\n")
print(flush=True)
sys.stdin.readline()
for number in range(3000):
    output.write("y" * 100 + "\\n")
"""
    os.fchmod(terminal.writer, 0o600)
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=terminal.writer,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        assert terminal.read() == b"first\n"
        stop_reading(terminal)
        process.stdin.write(b"\n")
        process.stdin.flush()
        try:
            assert process.wait(HUNG_PROCESS) == 0
        finally:
            process.kill()


def test_what_is_no_terminal_is_written_to_as_well(tmp_path: Path) -> None:
    for path in (tmp_path / "file", Path(os.devnull)):
        with path.open("w") as stream:
            Output(stream).write("line\n")
    assert (tmp_path / "file").read_text() == "line\n"
