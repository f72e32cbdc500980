"""The Procfile runner, with real processes: each runner and all that it starts belong to the test."""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest

from app.supervisor import procfile
from tests.support.processes import lives
from tests.support.waiting import HUNG_PROCESS, eventually

ENVIRON = {**os.environ, "PYTHONPATH": str(Path(procfile.__file__).parents[2])}
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")

# What each child begins with. The alarm ends one that a failed test left behind.
PRELUDE = """
import os, pathlib, signal, subprocess, sys, time
signal.alarm(600)
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
def say(*words, sep=' '): print(*words, sep=sep, flush=True)
def until(condition):
    while not condition(): time.sleep(0.005)
def there(name): return lambda: pathlib.Path(name).exists()
"""
OBEDIENT = "say('ready', os.getpid()); until(lambda: told); say('told', len(told))"
# With a child of its own in its process group, which must hear nothing of the runner's signals.
PARENT = """
inner = sys.argv[1] + "say('inner ready', os.getpid()); sys.stdin.read(); say('inner told', len(told))"
child = subprocess.Popen([sys.executable, "-c", inner], stdin=subprocess.PIPE)
say('ready', os.getpid())
until(lambda: told)
child.communicate()
say('told', len(told))
"""


def command(code: str) -> str:
    """Return a Procfile's command for a child with that code."""
    return shlex.join([sys.executable, "-c", PRELUDE + code, PRELUDE])


class Runner:
    """A runner in a process of its own, and the records that it wrote."""

    def __init__(self, folder: Path, commands: dict[str, str], options: str, stdin: int, wrap: list[str]) -> None:
        code = f"import os, sys; from app.supervisor import procfile; sys.exit(procfile.run({commands!r}, {options}))"
        self.folder = folder
        with (folder / "log").open("wb") as log:
            self.popen = subprocess.Popen(
                [*wrap, sys.executable, "-c", code],
                cwd=folder,
                env=ENVIRON,
                stdin=stdin,
                stderr=log,
            )

    @property
    def lines(self) -> list[str]:
        return (self.folder / "log").read_text().rpartition("\n")[0].splitlines()

    @property
    def said(self) -> set[tuple[str, str]]:
        """All pairs of process and line that were said so far."""
        return {(record["process"], record["msg"]) for record in map(json.loads, self.lines)}

    def pids(self, what: str = "ready") -> dict[str, int]:
        """Return the numbers of the processes that said they are ready."""
        return {name: int(line.split()[-1]) for name, line in self.said if line.startswith(f"{what} ")}

    def until_ready(self, *names: str, what: str = "ready") -> dict[str, int]:
        eventually(lambda: self.pids(what).keys() == set(names) or self.popen.poll() is not None)
        assert self.pids(what).keys() == set(names), self.lines
        return self.pids(what)

    def until_said(self, name: str, line: str) -> None:
        eventually(lambda: (name, line) in self.said or self.popen.poll() is not None)
        assert (name, line) in self.said

    def ended(self) -> int:
        return self.popen.wait(HUNG_PROCESS)


Start = Callable[..., Runner]


@pytest.fixture(params=["started", "forked"] if sys.platform == "linux" else ["started"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    """Return what starts a runner, whose processes are programs of their own or forks of it."""
    runners: list[Runner] = []
    programs = {sys.executable: "tests.supervisor.interpreter:main"} if request.param == "forked" else {}

    def starter(
        commands: dict[str, str], options: str = "", stdin: int = subprocess.DEVNULL, wrap: list[str] | None = None
    ) -> Runner:
        options = f"programs={programs!r}, {options}"
        runners.append(Runner(tmp_path, commands, options, stdin, wrap or []))
        return runners[-1]

    yield starter
    for runner in runners:
        with suppress(subprocess.TimeoutExpired):
            runner.popen.terminate()
            runner.popen.wait(HUNG_PROCESS)
        runner.popen.kill()
        runner.popen.wait()


def test_reads_commands_and_skips_comments_and_blanks() -> None:
    text = "# the replica\n\nrelease: A=1 migrate\n  worker:  dramatiq app --queues 'a b'\r\nclock_2-x: tick: tock\n"
    assert procfile.parse(text) == {
        "release": "A=1 migrate",
        "worker": "dramatiq app --queues 'a b'",
        "clock_2-x": "tick: tock",
    }


@pytest.mark.parametrize("line", ["worker", "worker:", ": x", "a: x\0y", "a b: x", "a: 'x", "a: A=1", "ok: again"])
def test_refuses_any_other_line_by_its_number(line: str) -> None:
    with pytest.raises(ValueError, match="line 3"):
        procfile.parse(f"ok: fine\n\n{line}\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_reaches_each_main_process_once_and_no_other(start: Start, number: signal.Signals) -> None:
    runner = start({"worker": command(PARENT), "scheduler": command(PARENT)})
    runner.until_ready("worker", "scheduler", what="inner ready")
    runner.until_ready("worker", "scheduler")
    runner.popen.send_signal(number)
    assert runner.ended() == 0
    lines = sorted((name, line) for name, line in runner.said if "told" in line)
    assert lines == [
        ("scheduler", "inner told 0"),
        ("scheduler", "told 1"),
        ("worker", "inner told 0"),
        ("worker", "told 1"),
    ]


def test_further_signals_change_nothing(start: Start) -> None:
    rounds = ("a", "b", "c")
    slow = f"say('ready', 0); until(lambda: told); say('told')\nfor name in {rounds}: until(there(name)); say(name)\n"
    runner = start({"worker": command(slow + "say('told', len(told))")}, "grace=300")
    runner.until_ready("worker")
    runner.popen.terminate()
    runner.until_said("worker", "told")
    for name in rounds:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            runner.popen.send_signal(number)
        (runner.folder / name).touch()
        runner.until_said("worker", name)  # through the runner, which by now has seen the signals too
    assert runner.ended() == 0
    assert ("worker", "told 1") in runner.said


def test_a_third_interrupt_at_a_terminal_kills_at_once(start: Start) -> None:
    terminal, inner = pty.openpty()
    runner = start({"worker": command("say('ready', os.getpid()); until(lambda: False)")}, "grace=300", stdin=inner)
    pid = runner.until_ready("worker")["worker"]

    def interrupted() -> bool:
        runner.popen.send_signal(signal.SIGINT)
        return runner.popen.poll() is not None

    eventually(interrupted)
    assert runner.ended() == 137
    assert not lives(pid)
    os.close(inner)
    os.close(terminal)


def test_a_process_without_a_handler_may_end_of_the_signal(start: Start) -> None:
    default = "signal.signal(signal.SIGTERM, signal.SIG_DFL); say('ready', 0); time.sleep(600)"
    runner = start({"worker": command(default), "scheduler": command(OBEDIENT)})
    runner.until_ready("worker", "scheduler")
    runner.popen.terminate()
    assert runner.ended() == 0


def test_a_bad_end_after_a_stop_is_the_status(start: Start) -> None:
    runner = start({"worker": command(OBEDIENT), "scheduler": command(OBEDIENT + "; sys.exit(4)")})
    runner.until_ready("worker", "scheduler")
    runner.popen.terminate()
    assert runner.ended() == 4


@pytest.mark.parametrize(
    ("end", "status"), [("sys.exit(3)", 3), ("sys.exit(0)", 1), ("os.kill(os.getpid(), signal.SIGKILL)", 137)]
)
def test_one_that_ends_by_itself_stops_the_others(start: Start, end: str, status: int) -> None:
    ready = "pathlib.Path('ready').touch();"
    runner = start({"worker": command(f"until(there('ready')); {end}"), "scheduler": command(ready + OBEDIENT)})
    assert runner.ended() == status
    assert ("scheduler", "told 1") in runner.said


def test_one_that_ignores_the_stop_is_killed_with_its_group(start: Start) -> None:
    stubborn = PARENT.replace("lambda: told", "lambda: False").replace("sys.stdin.read()", "time.sleep(600)")
    runner = start({"worker": command(stubborn)}, "grace=0.3")
    pids = [*runner.until_ready("worker", what="inner ready").values(), *runner.until_ready("worker").values()]
    asked = time.monotonic()
    runner.popen.terminate()
    assert runner.ended() == 137
    assert time.monotonic() - asked >= 0.3 + procfile.KILL_AFTER_SECONDS  # which no load makes shorter
    assert ("worker", "[ERROR] did not end in time; killed") in runner.said
    eventually(lambda: not any(map(lives, pids)))


def test_replicas_have_numbers_and_an_environment_of_their_own(start: Start) -> None:
    own = "say('ready', os.environ['NUMBER'] + os.environ['OWN']); until(lambda: told)"
    commands = {"worker": "OWN=7 " + command(own), "scheduler": "OWN='8' NUMBER=9 " + command(own), "idle": "false"}
    options = "replicas={'worker': 2, 'idle': 0}, environ=lambda n: {**os.environ, 'NUMBER': str(n)}"
    runner = start(commands, options)
    assert runner.until_ready("worker.1", "worker.2", "scheduler") == {
        "worker.1": 17,
        "worker.2": 27,
        "scheduler": 98,
    }
    runner.popen.terminate()
    assert runner.ended() == 0


@pytest.mark.parametrize(
    "text",
    [
        "Error: DATABASE_URL: the server cannot be reached",
        "Usage: sb-worker run [OPTIONS]",
        "Traceback (most recent call last):\n  File 'x', line 1\n    boom\n    ^^^^\nValueError: no",
        "ModuleNotFoundError: No module named 'app'",
        "app.core.errors.BootError",
        "KeyboardInterrupt",
        "Fatal Python error: Segmentation fault\n\n  File 'x', line 1",
        "Segmentation fault",
        "libgcc: error: no room",
        "fatal: no room",
        "FATAL:  no room",
        "python3: can't open file '/x.py': [Errno 2] No such file or directory",
        "/bin/sh: 1: dramatiq: not found",
        "python3: symbol lookup error: x.so: undefined symbol: y",
        "python3: x.c:3: f: Assertion `x' failed.",
        "Bus error (core dumped)",
        "malloc(): corrupted top size",
        "double free or corruption (!prev)",
        "*** stack smashing detected ***: terminated",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "Exception ignored in: <function f>",
        "Worker with PID 7 exited unexpectedly (code -9). Shutting down...",
    ],
)
def test_what_a_process_says_of_its_failure_is_an_error(start: Start, text: str) -> None:
    runner = start({"worker": command(f"say({text!r}); say('fine')")})
    assert runner.ended() == 1
    *wrapped, fine, _ended = [json.loads(line) for line in runner.lines]
    assert {line["level"] for line in wrapped if line["msg"]} == {"ERROR"}
    assert fine["level"] == "INFO"


def test_one_environment_serves_all(start: Start) -> None:
    runner = start({"worker": command("say(os.environ['WORD'])")}, "environ={**os.environ, 'WORD': 'hello'}")
    assert runner.ended() == 1
    assert ("worker", "hello") in runner.said


def test_records_pass_and_plain_lines_become_records(start: Start) -> None:
    record = '{"level":"INFO", "msg": "swept"}'
    plain = ["[1, 2]", "{no record", "[a] [CRITICAL] x", "[a] [ERROR] x", "[a] [WARNING] x", "config error: x", "é"]
    plain += ["/x.py:3: DeprecationWarning: x", "WARNING: x", "errors: 0"]
    code = f"say({record!r}); say(*{plain!r}, sep=chr(10)); os.write(2, b'on stderr, \\xff, no end')"
    runner = start({"worker": command(code)})
    assert runner.ended() == 1
    assert runner.lines[0] == record
    wrapped = [json.loads(line) for line in runner.lines[1:]]
    assert [line["msg"] for line in wrapped[:-1]] == [*plain, "on stderr, \ufffd, no end"]
    levels = [line["level"] for line in wrapped]
    assert levels == [
        *("INFO", "INFO", "ERROR", "ERROR", "WARN", "ERROR", "INFO", "WARN", "WARN"),
        *("INFO", "INFO", "ERROR"),
    ]
    assert wrapped[-1]["msg"] == "[ERROR] ended by itself with status 0"
    assert {line["process"] for line in wrapped} == {"worker"}
    assert all(datetime.fromisoformat(line["time"]).tzinfo for line in wrapped)


def test_all_that_was_written_before_the_end_arrives(start: Start) -> None:
    runner = start({"worker": command("say(*range(30_000), sep=chr(10)); say('x' * 3_000_000)")})
    assert runner.ended() == 1
    lines = [json.loads(line)["msg"] for line in runner.lines[:-1]]
    assert lines[:30_000] == [str(number) for number in range(30_000)]
    assert "".join(lines[30_000:]) == "x" * 3_000_000


def test_a_grandchild_that_holds_the_pipe_holds_up_nothing(start: Start) -> None:
    code = "inner = subprocess.Popen(['sleep', '600']); say('inner', inner.pid); os.write(1, b'no end'); sys.exit(3)"
    runner = start({"worker": command(code)})
    inner = runner.until_ready("worker", what="inner")["worker"]
    try:
        assert runner.ended() == 3
        assert ("worker", "no end") in runner.said
        assert lives(inner)
    finally:
        os.kill(inner, signal.SIGKILL)


def test_a_terminal_gets_names_and_colours(tmp_path: Path) -> None:
    terminal, inner = pty.openpty()
    commands = {"a": command("say('hello')")}
    code = f"from app.supervisor import procfile; procfile.run({commands!r})"
    words = [sys.executable, "-c", code]
    subprocess.run(words, stderr=inner, timeout=HUNG_PROCESS, check=True, cwd=tmp_path, env=ENVIRON)
    shown = b""
    while shown.count(b"\n") < 2:  # what was written is not there at once
        shown += os.read(terminal, 4096)
    assert shown.decode().splitlines() == [
        "\x1b[36ma      \x1b[0m | hello",
        "\x1b[36ma      \x1b[0m | [ERROR] ended by itself with status 0",
    ]
    os.close(inner)
    os.close(terminal)


def test_a_reader_of_ones_own_replaces_the_printing(start: Start) -> None:
    runner = start({"worker": command("say('hello')")}, "on_line=lambda *pair: print(*pair, file=open('own', 'a'))")
    assert runner.ended() == 1
    assert (runner.folder / "own").read_text() == "worker hello\nworker [ERROR] ended by itself with status 0\n"
    assert runner.lines == []


def test_a_reader_that_fails_leaves_no_process_behind(start: Start) -> None:
    code = "pathlib.Path('pid').write_text(str(os.getpid())); say('ready'); until(lambda: told); time.sleep(0.1); "
    runner = start({"worker": command(code + "pathlib.Path('told').touch()")}, "on_line=lambda *pair: 1 / 0")
    assert runner.ended() == 1
    assert not lives(int((runner.folder / "pid").read_text()))
    assert (runner.folder / "told").exists()


@LINUX
def test_a_killed_runner_leaves_no_process_behind(start: Start) -> None:
    default = "signal.signal(signal.SIGTERM, signal.SIG_DFL); say('ready', os.getpid()); time.sleep(600)"
    runner = start({"worker": command(default), "scheduler": command(default)})
    pids = runner.until_ready("worker", "scheduler").values()
    runner.popen.kill()
    assert runner.ended() == -signal.SIGKILL
    eventually(lambda: not any(map(lives, pids)))


def test_the_release_entry_runs_first_and_to_its_end(start: Start) -> None:
    commands = {
        "worker": command("say('released', pathlib.Path('done').exists())"),
        "release": command("say('migrated'); pathlib.Path('done').touch()"),
    }
    runner = start(commands, "release=True")
    assert runner.ended() == 1
    assert [json.loads(line)["msg"] for line in runner.lines[:3]] == [
        "migrated",
        "[INFO] ended by itself with status 0",
        "released True",
    ]


def test_nothing_starts_after_a_failed_release(start: Start) -> None:
    commands = {"worker": command("pathlib.Path('started').touch()"), "release": command("sys.exit(5)")}
    runner = start(commands, "release=True")
    assert runner.ended() == 5
    assert not (runner.folder / "started").exists()


def test_nothing_starts_after_a_stop_during_the_release(start: Start) -> None:
    runner = start({"worker": "no-such-program", "release": command(OBEDIENT)}, "release=True")
    runner.until_ready("release")
    runner.popen.terminate()
    assert runner.ended() == 0  # trying to start the worker would be a failure


def test_the_release_entry_does_not_run_unasked(start: Start) -> None:
    runner = start({"release": command("pathlib.Path('started').touch()"), "worker": command("sys.exit(6)")})
    assert runner.ended() == 6
    assert not (runner.folder / "started").exists()


def test_a_program_that_is_not_there_stops_the_others(start: Start) -> None:
    default = "signal.signal(signal.SIGTERM, signal.SIG_DFL); time.sleep(600)"
    runner = start({"worker": command(default), "scheduler": "no-such-program --help"})
    assert runner.ended() == 127
    assert ("scheduler", "[ERROR] cannot be started: No such file or directory") in runner.said


@pytest.mark.parametrize(
    ("program", "mode", "status"),
    [("no-such-program", 0o000, 127), ("program", 0o000, 126), ("./program", 0o644, 126), ("./no-such", 0o644, 127)],
)
def test_what_cannot_be_started_has_a_shells_status_whatever_else_is_on_the_path(
    start: Start, tmp_path: Path, program: str, mode: int, status: int
) -> None:
    """A folder that may not be read is on it; for the system, which finds nothing there, that is a refusal."""
    closed, there = tmp_path / "closed", tmp_path / "program"
    closed.mkdir()
    there.touch(mode)
    closed.chmod(0o000)
    wrap = []
    if os.getuid() == 0:
        wrap = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]  # else root may read everything
        if not shutil.which("setpriv") or subprocess.run([*wrap, "true"], capture_output=True, check=False).returncode:
            pytest.skip("root cannot do without its right to read everything")
    try:
        runner = start({"worker": f"PATH={closed}:{tmp_path} {program}"}, wrap=wrap)
        assert runner.ended() == status
    finally:
        closed.chmod(0o700)


def test_nothing_to_run_is_a_failure(start: Start) -> None:
    runner = start({"release": "true"})
    assert runner.ended() == 1
    assert runner.said == {("runner", "[ERROR] there is nothing to run")}


@LINUX
def test_process_1_buries_orphans_and_keeps_the_status_of_its_own(start: Start) -> None:
    space = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if not shutil.which("unshare") or subprocess.run([*space, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no new PID namespace is to be had")
    code = """
orphans = [subprocess.Popen(["sh", "-c", "sleep 0.01 & echo $!"], stdout=subprocess.PIPE) for _ in range(5)]
pids = [orphan.communicate()[0].decode().strip() for orphan in orphans]
until(lambda: not any(pathlib.Path("/proc", pid).exists() for pid in pids))
say("parent", os.getppid())
sys.exit(3)
"""
    runner = start({"worker": command(code)}, wrap=space)
    assert runner.ended() == 3
    assert ("worker", "parent 1") in runner.said


@pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")
def test_a_fork_shares_what_was_loaded_and_nothing_else(start: Start) -> None:
    look = (
        "import colorsys, stat\n"
        "files = sorted(int(name) for name in os.listdir('/proc/self/fd'))\n"
        "say('files', [file for file in files if file > 2 and os.path.exists(f'/proc/self/fd/{file}')])\n"
        "say('session', os.getsid(0) == os.getpid(), os.read(0, 1), os.environ['OWN'], 'FOREIGN' in os.environ)\n"
        "say('name', open('/proc/self/comm').read().strip(), sys.argv[1:] == [sys.argv[1]])\n"
        "mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"
        "say('stops', signal.getsignal(signal.SIGHUP) == signal.SIG_DFL, mask)\n"
        "say('ready', os.getpid()); until(lambda: told)"
    )
    environ = {name: value for name, value in ENVIRON.items() if name != "FOREIGN"}
    runner = start({"worker": f"OWN=1 {command(look)}"}, f"environ={environ!r}")
    runner.until_ready("worker")
    runner.popen.terminate()
    assert runner.ended() == 0
    said = {line.partition(" ")[0]: line.partition(" ")[2] for _, line in runner.said}
    assert said["files"] == "[]"
    assert said["session"] == "True b'' 1 False"
    assert said["stops"] == "True set()"
