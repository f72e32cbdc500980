"""Runs the processes of a Procfile as one replica: `sb-worker run`, process 1 of a container.

Signals go to each entry's main process only. A runner that signals whole groups reaches Dramatiq's workers twice,
once by itself and once through their main process, and the second signal cuts their jobs. Each entry has a session
of its own, so that Ctrl-C in a terminal reaches the runner alone.
"""

from __future__ import annotations

import errno
import json
import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import NamedTuple, NoReturn

from app.supervisor import forked, stops
from app.supervisor.console import Multiplexer
from app.supervisor.parent_death import signal_at_parent_death

OnLine = Callable[[str, str], None]
#: The environment of every process, or a function from an entry's replica number (1, 2, ...) to its environment.
Environ = Mapping[str, str] | Callable[[int], Mapping[str, str]]

#: Seconds that a process may take beyond its own grace period before it is killed.
KILL_AFTER_SECONDS = 5.0
RELEASE = "release"
#: A shell's exit statuses for a program that does not exist, and for one that cannot be started.
NOT_FOUND, NOT_STARTED = 127, 126
#: So many Ctrl-C at a terminal kill at once.
_INTERRUPTS_THAT_KILL = 3
#: Bytes of one read: more than a pipe holds, so that one read empties it. Also bounds the unfinished line in memory.
_PIPE = 1 << 20


def parse(text: str) -> dict[str, str]:
    """Read `name: command` lines; blank lines and comments are skipped. Raises ValueError for any other line."""
    commands: dict[str, str] = {}
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9_-]+):\s*(.+)", line)
        if match is None or "\0" in line or not _is_command(match[2]):
            raise ValueError(f"line {number} of the Procfile is not `name: command`")
        if match[1] in commands:
            raise ValueError(f"line {number} of the Procfile names {match[1]} a second time")
        commands[match[1]] = match[2]
    return commands


def run(  # noqa: PLR0913 - the options of a replica
    commands: Mapping[str, str],
    *,
    replicas: Mapping[str, int] | None = None,
    grace: float = 15.0,
    release: bool = False,
    on_line: OnLine | None = None,
    environ: Environ | None = None,
    programs: Mapping[str, str] | None = None,
) -> int:
    """Run every entry but `release` until one ends or a stop is requested; return the exit status.

    With `release` that entry is run first, to its end, and any status but 0 is returned. A process that ends by
    itself makes the replica incomplete: the others are stopped and its status is returned, 128 + n for a death by
    signal n, 1 in place of 0. SIGTERM, SIGINT or SIGHUP stop all of them; then the status is 0 if each ended with 0
    or of the SIGTERM, else the first other one. A process that still runs `grace` + KILL_AFTER_SECONDS seconds after
    its SIGTERM is killed with its process group. From a stop on, further stops are ignored, also after the return,
    since the program is expected to end; only a third Ctrl-C at a terminal kills at once.

    `replicas` is how many of an entry to run, 1 by default. `on_line` gets each line that a process `name` (or
    `name.number`, of several) wrote, and by default writes it to stderr. What is in `programs`, by the name that
    commands have for it, is run in a fork of this process (`app.supervisor.forked`). Call this from the main thread:
    signal handlers, Linux's parent-death signal and forks all belong to it.
    """
    members = list(_members(commands, replicas or {}, environ))
    on_line = on_line or Multiplexer([member.name for member in members])
    runner = _Runner(grace + KILL_AFTER_SECONDS, on_line, programs or {})
    with runner.listening():
        if release and RELEASE in commands:
            first = _Member(RELEASE, commands[RELEASE], _environment(environ, 1))
            if status := runner.until_one_ends([first]):
                return status
        return runner.until_one_ends(members) or (0 if runner.stops else 1)


class _Member(NamedTuple):
    """One process that is to run."""

    name: str
    command: str
    environ: Mapping[str, str]


def _members(commands: Mapping[str, str], replicas: Mapping[str, int], environ: Environ | None) -> Iterator[_Member]:
    for entry, command in commands.items():
        count = 0 if entry == RELEASE else replicas.get(entry, 1)
        for number in range(1, count + 1):
            name = entry if count == 1 else f"{entry}.{number}"
            yield _Member(name, command, _environment(environ, number))


def _environment(environ: Environ | None, number: int) -> Mapping[str, str]:
    if environ is None or isinstance(environ, Mapping):
        return os.environ if environ is None else environ
    return environ(number)


def _split(command: str) -> tuple[dict[str, str], list[str]]:
    """Split `NAME=value ... program argument ...` as a shell would; nothing is expanded."""
    arguments, variables = shlex.split(command), {}
    while arguments and re.fullmatch(r"[A-Za-z_]\w*=.*", arguments[0], re.DOTALL):
        name, _, variables[name] = arguments.pop(0).partition("=")
    return variables, arguments


def _is_command(text: str) -> bool:
    try:
        return bool(_split(text)[1])
    except ValueError:  # a quote that is not closed
        return False


def _is_there(member: _Member) -> bool:
    """Say whether a member's program is there, be it one that cannot be executed.

    For the system a folder of PATH that may not be read is a refusal, whatever the other folders have; for a shell, and
    for us, it is a folder without the program. A program with its path is what the system says of it.
    """
    own, (program, *_) = _split(member.command)
    folders = os.get_exec_path({**member.environ, **own})
    return "/" in program or any(os.access(f"{folder}/{program}", os.F_OK) for folder in folders)


def _started(
    name: str, arguments: list[str], environ: Mapping[str, str], program: str | None
) -> subprocess.Popen[bytes] | forked.Fork:
    """Start a process. Raises OSError."""
    if program is not None:
        return forked.Fork(name, program, arguments, environ)
    return subprocess.Popen(
        arguments,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        start_new_session=True,
        preexec_fn=partial(_end_with, os.getpid()),  # noqa: PLW1509 - two system calls, nothing that locks
    )


class _Process:
    """A running member and what it has written of its last line."""

    def __init__(self, member: _Member, programs: Mapping[str, str]) -> None:
        variables, arguments = _split(member.command)
        self.name = member.name
        self._rest = b""
        self.popen = _started(self.name, arguments, {**member.environ, **variables}, programs.get(arguments[0]))
        assert self.popen.stdout is not None
        self.pipe = self.popen.stdout
        os.set_blocking(self.pipe.fileno(), False)

    @property
    def status(self) -> int:
        """The exit status of a process that has ended, as a shell would put it."""
        code = self.popen.returncode
        return 128 - code if code < 0 else code

    @property
    def obeyed(self) -> bool:
        """Whether it ended of SIGTERM, as one that does not handle it should."""
        return self.popen.returncode == -signal.SIGTERM

    def kill_group(self) -> None:
        """Kill the process and all that it started. Only while it runs: later the group's id may be another's."""
        with suppress(ProcessLookupError, PermissionError):  # macOS refuses where only zombies are left
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def read(self, *, last: bool = False) -> list[str]:
        """Return the lines written since. With `last` the unfinished one too, and close the pipe.

        That is not left to the pipe's end: what the process has started may hold it open for longer.
        """
        data = b""
        with suppress(BlockingIOError):
            data = os.read(self.pipe.fileno(), _PIPE)
            data += (rest := os.read(self.pipe.fileno(), _PIPE))  # the end may be right behind
            last = last or not rest
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self._rest and (last or len(self._rest) > _PIPE):
            lines.append(self._rest)
            self._rest = b""
        if last:
            self.pipe.close()
        return [line.decode(errors="replace").rstrip("\r") for line in lines]


class _Runner:
    """Starts processes, passes on what they write, notices ends and signals, stops them."""

    def __init__(self, kill_after: float, on_line: OnLine, programs: Mapping[str, str]) -> None:
        self._kill_after = kill_after
        self._on_line = on_line
        self._programs = programs
        self._processes: list[_Process] = []
        self._selector = selectors.DefaultSelector()
        self.stops: list[int] = []  # the signals that requested a stop

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals meanwhile, each of which ends a wait. On the way out no process is left behind."""
        reader, writer = os.pipe()
        for end in (reader, writer):
            os.set_blocking(end, False)
        self._selector.register(reader, selectors.EVENT_READ)
        waker = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        # Without a handler of SIGCHLD, be it one that does nothing, the end of a child would not wake us.
        before = {number: signal.signal(number, self._on_signal) for number in (*stops.STOPS, signal.SIGCHLD)}
        stops.release()
        try:
            yield
        finally:
            self._on_line = _discard  # it may be what failed
            self._stop()
            for number, handler in before.items():
                # Signals come in pairs, and one that comes while the program leaves must not become its status.
                signal.signal(number, signal.SIG_IGN if self.stops and number in stops.STOPS else handler)
            signal.set_wakeup_fd(waker)
            self._selector.close()
            os.close(reader)
            os.close(writer)

    def until_one_ends(self, members: Sequence[_Member]) -> int:
        """Run these until one ends or a stop is requested, stop the rest, and return the exit status.

        Nothing is started once a stop was requested.
        """
        self._processes = []
        for member in members:
            if not self.stops and (failure := self._start(member)):
                self._stop()
                return failure
        if not members:
            self._on_line("runner", "[ERROR] there is nothing to run")
        while not self.stops and self._processes and len(self._alive()) == len(self._processes):
            self._wait(1.0)
        ended = [process for process in self._processes if process.popen.returncode is not None]
        for process in ended if not self.stops else ():
            self._pass_on(process)  # its own last lines come first
            level = "INFO" if process.name == RELEASE and not process.status else "ERROR"
            self._on_line(process.name, f"[{level}] ended by itself with status {process.status}")
        self._stop()
        # A host that signals all processes of a container may reach the others first: so `stops` counts by now.
        if self.stops:
            return next(filter(None, (process.status for process in self._processes if not process.obeyed)), 0)
        return ended[0].status if ended else 0

    def _start(self, member: _Member) -> int:
        """Start a process and return 0; when it cannot be started, write a line that says why and return a status."""
        try:
            process = _Process(member, self._programs)
        except OSError as error:
            reason = error.errno if _is_there(member) else errno.ENOENT
            self._on_line(member.name, f"[ERROR] cannot be started: {os.strerror(reason or 0)}")
            return NOT_FOUND if reason == errno.ENOENT else NOT_STARTED
        self._processes.append(process)
        self._selector.register(process.pipe, selectors.EVENT_READ, process)
        return 0

    def _stop(self) -> None:
        """Send every process one SIGTERM; kill those that do not end. All have ended and are read out after this."""
        for process in self._alive():
            process.popen.terminate()
        deadline = time.monotonic() + self._kill_after
        while self._alive() and (remaining := deadline - time.monotonic()) > 0 and not self._to_be_killed_now():
            self._wait(min(remaining, 1.0))
        for process in self._alive():
            self._on_line(process.name, "[ERROR] did not end in time; killed")
            process.kill_group()
        for process in self._processes:
            self._pass_on(process, last=True)

    def _alive(self) -> list[_Process]:
        return [process for process in self._processes if process.popen.poll() is None]

    def _to_be_killed_now(self) -> bool:
        return self.stops.count(signal.SIGINT) >= _INTERRUPTS_THAT_KILL and os.isatty(0)

    def _wait(self, seconds: float) -> None:
        """Wait for a signal, the end of a process or output, for so many seconds at most; pass the output on."""
        for key, _ in self._selector.select(seconds):
            if key.data is not None:
                self._pass_on(key.data)
            else:
                os.read(key.fd, 4096)
        if sys.platform == "linux" and os.getpid() == 1:
            self._bury()

    def _pass_on(self, process: _Process, *, last: bool = False) -> None:
        if process.pipe.closed:
            return
        descriptor = process.pipe.fileno()
        lines = process.read(last=last)
        if process.pipe.closed:
            self._selector.unregister(descriptor)
        for line in lines:
            self._on_line(process.name, line)

    def _bury(self) -> None:
        """Reap the orphans that process 1 inherits; our own children are left to Popen, which keeps their status."""
        children = {process.popen.pid: process.popen for process in self._alive()}  # an orphan may have an old number
        with suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if ended.si_pid in children:
                    children[ended.si_pid].poll()
                else:
                    os.waitpid(ended.si_pid, 0)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number in stops.STOPS:
            self.stops.append(number)


def _discard(_name: str, _line: str) -> None:
    """Drop a line."""


def _end_with(parent: int) -> None:
    """In a new child: end it with the runner, so that no orphan goes on."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the runner's handler, still there, would swallow one from now on
    signal_at_parent_death()
    if os.getppid() != parent:  # it died before
        os._exit(1)


def become(
    commands: Mapping[str, str],
    *,
    environs: Mapping[int, Mapping[str, str]],
    preload: Sequence[str] = (),
    **options: object,
) -> NoReturn:
    """Replace this program by a runner with nothing in memory but what its programs share; signals and status stay.

    `environs` is added to the environment of replicas number 1, 2, ...; `preload` is the modules that are loaded before
    anything is forked; the other options are those of `run`. A stop that comes on the way is the runner's. Raises
    OSError when all of that is longer than the system lets an argument be.
    """
    stops.hold()
    task = json.dumps({"commands": dict(commands), "environs": environs, "preload": preload, "options": options})
    os.execv(sys.executable, [sys.executable, "-m", "app.supervisor.procfile", task])


def _main() -> int:
    task = json.loads(sys.argv[1])
    environs = {int(number): environ for number, environ in task["environs"].items()}
    forked.preload(task["preload"])
    return run(task["commands"], environ=lambda number: {**os.environ, **environs.get(number, {})}, **task["options"])


if __name__ == "__main__":
    sys.exit(_main())
