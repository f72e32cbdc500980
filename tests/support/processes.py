"""Real worker and scheduler processes, started as an operator starts them, and stopped whatever happens."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

from app.demo.ports import reserved_port
from app.supervisor.parent_death import signal_at_parent_death
from tests.support.waiting import HUNG, HUNG_PROCESS, eventually

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

#: Cadences and limits under which a test does not have to wait.
QUICK = {
    "SB_SWEEP_WRAPS_INTERVAL": "1s",
    "SB_SWEEP_SECRETS_INTERVAL": "1s",
    "SB_SWEEP_AGENTS_INTERVAL": "1s",
    "SB_SWEEP_JOBS_INTERVAL": "1s",
    "SB_SWEEP_DISCOVER_INTERVAL": "1s",
    "SB_SWEEP_DISCOVER_STUCK_INTERVAL": "1s",
    "SB_SWEEP_REVEAL_INTERVAL": "1s",
    "SB_SWEEP_CROSS_TEAM_FILL_INTERVAL": "1s",
    "SB_WORKER_LOCK_LEASE": "3s",
}

#: And limits that only a process that hangs can come up against.
PATIENT = {"SB_WORKER_LOCK_LEASE": "30s", "SB_WORKER_SHUTDOWN_GRACE": "100s"}

WORKER = (
    *("dramatiq", "app.actors", "--processes", "1", "--threads", "8", "--skip-logging"),
    *("--worker-fork-timeout", "5000"),
)
SCHEDULER = ("periodiq", "app.actors")

#: How multiprocessing, and so Dramatiq, starts a process; the first one is the default.
BY_FORK_SERVER = multiprocessing.get_all_start_methods()[0] == "forkserver"


def environment(database: str, redis: str, **more: str) -> dict[str, str]:
    """Return an environment with these servers and without any other settings."""
    foreign = (
        "SB_",
        "DATABASE_",
        "REDIS_",
        "PG",
        "LOG_LEVEL",
        "dramatiq_",
        "PYTHONPATH",
        "COV_",
        "VAULT_",
        "AWS_",
        "OTEL_",
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    path = os.pathsep.join((str(BIN), clean.get("PATH", "")))
    quiet = {"PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return {**clean, **quiet, "DATABASE_URL": database, "REDIS_URL": redis, **more}


def finished(words: Sequence[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run one of our programs to its end and return its status and what it printed."""
    return subprocess.run(
        [BIN / words[0], *words[1:]],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=HUNG_PROCESS,
        check=False,
    )


def process_status(pid: int) -> str:
    """Return what psutil says of a process, which may end while it is looked at; one that is not there is dead."""
    try:
        return str(psutil.Process(pid).status())
    except psutil.NoSuchProcess:
        return str(psutil.STATUS_DEAD)


def lives(pid: int) -> bool:
    """Return whether a process is there and has not ended."""
    return process_status(pid) not in {psutil.STATUS_DEAD, psutil.STATUS_ZOMBIE}


class Process:
    """One command with its log in a file."""

    def __init__(self, words: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.log = log
        self._place = ExitStack()
        self.port = self._place.enter_context(reserved_port())
        place = f"127.0.0.1:{self.port}"
        own = {"SB_WORKER_LOCAL_ADDR": place, "SB_NOTIFICATION_LOCAL_ADDR": place}
        with log.open("ab") as out:
            self.popen = subprocess.Popen(
                [str(BIN / words[0]), *words[1:]],
                cwd=ROOT,
                env={**own, **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=signal_at_parent_death,  # noqa: PLW1509 - only prctl is called
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, signal.SIGKILL)  # its session is its own
            self.popen.wait()
        self._place.close()
        if kind is not None:
            print(self.log.read_text()[-4000:])

    @property
    def text(self) -> str:
        """All that it has written; of a character that it is writing still, a mark."""
        return self.log.read_text(errors="replace")

    @property
    def records(self) -> list[dict[str, Any]]:
        """Its JSON records, but for one that it is writing still."""
        complete = self.text.rpartition("\n")[0]
        return [json.loads(line) for line in complete.splitlines() if line.startswith("{")]

    def ready(self) -> Self:
        """Wait until it answers that it is ready."""
        eventually(lambda: self.popen.poll() is not None or self.get("/readyz").status_code == 200)
        assert self.popen.poll() is None, self.text
        return self

    def get(self, path: str) -> httpx.Response:
        """Ask its probe server; 599 stands for no answer."""
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=HUNG, trust_env=False)
        except httpx.TransportError:
            return httpx.Response(599)

    def metric(self, name: str, **labels: str) -> float:
        """Return one sample of its metrics, summed over the labels that are left out; 0 when there is none."""
        text = self.get("/metrics").text
        total = 0.0
        for line in text.splitlines():
            match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if match and match[1] == name:
                found = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
                if labels.items() <= found.items():
                    total += float(match[3])
        return total

    def end(self, number: signal.Signals = signal.SIGTERM, seconds: float = HUNG_PROCESS) -> int:
        """Signal the main process and return its exit status."""
        self.popen.send_signal(number)
        return self.popen.wait(seconds)

    def kill_children(self) -> None:
        """Kill all that it has started; those that end by that before it is their turn are left out."""
        for child in psutil.Process(self.popen.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()

    @property
    def workers(self) -> list[psutil.Process]:
        """Dramatiq's workers: its children, or from Python 3.14 on those of the fork server that is one of them."""
        try:
            found = psutil.Process(self.popen.pid).children()
            return [worker for child in found for worker in child.children()] if BY_FORK_SERVER else found
        except psutil.NoSuchProcess:
            return []
