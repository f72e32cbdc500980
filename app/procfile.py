"""Runs the processes of a Procfile as one replica: `sb-worker run`, process 1 of a container.

Signals go to each entry's main process only. A runner that signals whole groups reaches Dramatiq's workers twice,
once by itself and once through their main process. Each entry has a session of its own, so that Ctrl-C in a terminal
reaches the runner alone.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from types import FrameType

OnLine = Callable[[str, str], None]

#: What a process may take beyond its own grace period before it is killed.
PATIENCE_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1
_COLOURS = (36, 33, 35, 32, 34, 31)
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_KILL_AFTER = 3


def parse(text: str) -> dict[str, str]:
    """Read `name: command` lines; blank lines and comments are skipped. Raises ValueError for any other line."""
    commands: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9_-]+):\s*(\S.*)", line.strip())
        if match is None:
            raise ValueError(f"line {number} of the Procfile is not `name: command`")
        commands[match[1]] = match[2]
    return commands


def run(  # noqa: PLR0913 - what a replica may be told
    commands: Mapping[str, str],
    *,
    replicas: Mapping[str, int] | None = None,
    grace: float = 15.0,
    release: bool = False,
    on_line: OnLine | None = None,
    environ: Callable[[int], Mapping[str, str]] | None = None,
) -> int:
    """Run every entry but `release` until one ends or the runner is told to stop; give the exit status.

    With `release` that entry is run first, to its end, and anything but 0 is returned. A process that ends by
    itself makes the replica incomplete: the others are stopped and its status is returned, 1 in place of 0. After a
    requested stop the status is 0 if all of them ended with 0. `environ` gives the environment of an entry's
    replica number 1, 2, ... Whoever is left after `grace` seconds and a little
    more is killed. Call it from the main thread.
    """
    return _Runner(commands, replicas or {}, grace, on_line, environ or (lambda _number: os.environ)).run(
        release=release
    )


class _Process:
    """One running entry and what it has written of its last line."""

    def __init__(self, name: str, command: str, environ: Mapping[str, str]) -> None:
        words = shlex.split(command)
        own: dict[str, str] = {}
        while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0], re.DOTALL):
            key, _, own[key] = words.pop(0).partition("=")
        self.name = name
        self.rest = b""
        self.popen = subprocess.Popen(
            words,
            env={**environ, **own},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - the runner has no other threads
        )

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self.popen.send_signal(number)

    def kill_group(self) -> None:
        """Kill the process and all that it started; the session, and so the group, is its own."""
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)

    @property
    def status(self) -> int:
        code = self.popen.returncode
        return 128 - code if code < 0 else code


class _Runner:
    """The loop: read what the processes write, notice ends and signals."""

    def __init__(
        self,
        commands: Mapping[str, str],
        replicas: Mapping[str, int],
        grace: float,
        on_line: OnLine | None,
        environ: Callable[[int], Mapping[str, str]],
    ) -> None:
        self.commands = commands
        self.replicas = replicas
        self.patience = grace + PATIENCE_SECONDS
        self.environ = environ
        self.selector = selectors.DefaultSelector()
        self.processes: list[_Process] = []
        self.told = 0
        names = list(self._names())
        self.on_line = on_line or _Printer(names)

    def run(self, *, release: bool) -> int:
        before = {number: signal.signal(number, self._note) for number in _STOPS}
        try:
            if release and "release" in self.commands:
                status = self._until_all_ended({"release": self.commands["release"]})
                if status or self.told:
                    return status
            return self._until_one_ends()
        finally:
            for process in self.processes:
                if process.popen.poll() is None:
                    process.kill_group()
                    process.popen.wait()
            for number, handler in before.items():
                signal.signal(number, handler)
            self.selector.close()

    def _names(self) -> list[str]:
        names = []
        for entry in self.commands:
            count = self.replicas.get(entry, 1)
            if entry != "release":
                names += [entry] if count == 1 else [f"{entry}.{number}" for number in range(1, count + 1)]
        return names

    def _start(self, name: str, command: str) -> None:
        try:
            number = int(name.partition(".")[2] or 1)
            process = _Process(name, command, self.environ(number))
        except OSError as error:
            self.on_line(name, f"cannot be started: {error.strerror}")
            raise SystemExit(127) from None
        assert process.popen.stdout is not None
        os.set_blocking(process.popen.stdout.fileno(), False)
        self.selector.register(process.popen.stdout, selectors.EVENT_READ, process)
        self.processes.append(process)

    def _until_all_ended(self, commands: Mapping[str, str]) -> int:
        for name, command in commands.items():
            self._start(name, command)
        while self._alive() and not self.told:
            self._wait()
        return self._stop() or max(process.status for process in self.processes)

    def _until_one_ends(self) -> int:
        self.processes.clear()
        for name in self._names():
            self._start(name, self.commands[name.partition(".")[0]])
        while len(self._alive()) == len(self.processes) and not self.told:
            self._wait()
        if self.told:
            return self._stop()
        ended = next(process for process in self.processes if process.popen.poll() is not None)
        self.on_line(ended.name, f"ended by itself with status {ended.status}; stopping the others")
        self._stop()
        return ended.status or 1

    def _stop(self) -> int:
        """Ask every process to end, once; kill who does not. Give the first bad status."""
        for process in self._alive():
            process.signal(signal.SIGTERM)
        deadline = time.monotonic() + self.patience
        while (alive := self._alive()) and time.monotonic() < deadline and self.told < _KILL_AFTER:
            self._wait()
        for process in alive:
            self.on_line(process.name, "did not end in time; killed")
            process.kill_group()
            process.popen.wait()
        self._wait(0)
        return next((process.status for process in self.processes if process.status), 0)

    def _alive(self) -> list[_Process]:
        return [process for process in self.processes if process.popen.poll() is None]

    def _wait(self, seconds: float = 0.1) -> None:
        """Pass on what was written, for at most so long."""
        for key, _ in self.selector.select(seconds):
            process: _Process = key.data
            data = process.popen.stdout.read(65_536) if process.popen.stdout else b""
            if not data:
                self.selector.unregister(key.fileobj)
                data = b"\n" if process.rest else b""
            *lines, process.rest = (process.rest + data).split(b"\n")
            for line in lines:
                self.on_line(process.name, line.decode(errors="replace").rstrip("\r"))
        if os.getpid() == 1:
            self._reap()

    def _reap(self) -> None:
        """Bury orphans that process 1 inherits, without taking the statuses of our own children."""
        mine = {process.popen.pid for process in self.processes}
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None or found.si_pid in mine:
                return
            os.waitpid(found.si_pid, 0)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.told += 1


class _Printer:
    """Writes lines to stderr: prefixed and coloured on a terminal, else JSON records, made so where they are not."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.width = max(map(len, names), default=0)
        self.human = sys.stderr.isatty()

    def __call__(self, name: str, line: str) -> None:
        if self.human:
            colour = _COLOURS[self.names.index(name) % len(_COLOURS)] if name in self.names else 37
            line = f"\x1b[{colour}m{name:<{self.width}}\x1b[0m | {line}"
        elif not _is_json(line):
            line = json.dumps(
                {
                    "time": datetime.now().astimezone().isoformat(),
                    "level": _level(line),
                    "msg": line,
                    "process": name,
                }
            )
        print(line, file=sys.stderr, flush=True)


def _is_json(line: str) -> bool:
    if not line.startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _level(line: str) -> str:
    if "CRITICAL" in line or "ERROR" in line or line.startswith(("config error", "Traceback")):
        return "ERROR"
    return "WARN" if "WARNING" in line else "INFO"


def _end_with_parent() -> None:
    """Have Linux end the child when the runner is killed, so that no orphan goes on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
