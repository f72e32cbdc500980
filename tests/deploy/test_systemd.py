"""The units: valid for systemd, hardened, in accord with the Procfile; and what they forbid the worker does without."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import redis as redis_py

from app.demo.servers import Redis
from app.supervisor import procfile
from tests.support.packages import missing
from tests.support.processes import BIN, QUICK, ROOT, SCHEDULER, WORKER, Process, environment
from tests.support.waiting import eventually

PLACE = ROOT / "deploy" / "systemd"
UNITS = ("secrets-bridge-worker.service", "secrets-bridge-notifier.service", "secrets-bridge-scheduler.service")
PROGRAMS = "/opt/secrets-bridge-worker/.venv/bin/"


def read(path: Path) -> dict[str, list[str]]:
    """Return all settings of a unit's file; some are said several times."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


COMMON = read(PLACE / "secrets-bridge-.service.d" / "common.conf")


@pytest.fixture
def analyze(tmp_path: Path) -> tuple[str, str]:
    """Return the beginning of a command: a systemd-analyze that looks at a root with our units and nothing else."""
    if not shutil.which("systemd-analyze") or not list(Path("/lib/systemd/system").glob("*.target")):
        missing("systemd")
    units, programs = tmp_path / "etc/systemd/system", tmp_path / PROGRAMS.lstrip("/")
    shutil.copytree(PLACE, units)
    programs.mkdir(parents=True)
    for target in Path("/lib/systemd/system").glob("*.target"):
        shutil.copyfile(target, units / target.name)
    for name in ("sb-worker", "dramatiq", "periodiq"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    return "systemd-analyze", f"--root={tmp_path}"


def test_systemd_finds_nothing_to_say_of_them(analyze: tuple[str, str]) -> None:
    done = subprocess.run(
        [*analyze, "verify", "--man=no", "secrets-bridge.target", *UNITS], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_calls_them_little_exposed(analyze: tuple[str, str], unit: str) -> None:
    words = [*analyze, "security", "--offline=true", "--no-pager", unit]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    level = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert level, done.stdout + done.stderr
    assert float(level[1]) <= 2  # of 10; another systemd knows other questions


def test_they_run_what_the_procfile_runs() -> None:
    commands = procfile.parse((ROOT / "Procfile").read_text(encoding="utf-8"))
    for unit in UNITS:
        (line,) = read(PLACE / unit)["ExecStart"]
        entry = unit.removeprefix("secrets-bridge-").removesuffix(".service")
        assert sorted(shlex.split(line.removeprefix(PROGRAMS))) == sorted(shlex.split(commands[entry]))
    assert read(PLACE / UNITS[0])["ExecStartPre"] == [PROGRAMS + commands["release"]]


def test_the_target_starts_and_stops_all_three() -> None:
    assert read(PLACE / "secrets-bridge.target")["Wants"] == [" ".join(UNITS)]
    for unit in UNITS:
        settings = read(PLACE / unit)
        assert settings["PartOf"] == settings["WantedBy"] == ["secrets-bridge.target"]


def test_stops_reach_the_main_process_only_and_have_their_time() -> None:
    assert (COMMON["KillMode"], COMMON["KillSignal"]) == (["mixed"], ["SIGTERM"])
    assert int(COMMON["TimeoutStopSec"][0]) > 15 + procfile.KILL_AFTER_SECONDS  # SB_WORKER_SHUTDOWN_GRACE
    assert (COMMON["Restart"], COMMON["DynamicUser"]) == (["always"], ["yes"])


# What MemoryDenyWriteExecute is to a process: Linux's own switch for it, which its children inherit.
DENIED = """
import ctypes, os, sys
if ctypes.CDLL(None, use_errno=True).prctl(65, 1, 0, 0, 0):
    sys.exit(99)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("words", [WORKER, SCHEDULER], ids=["worker", "scheduler"])
def test_no_memory_need_be_written_and_run(
    words: tuple[str, ...], database: str, redis: redis_py.Redis, redis_server: Redis, tmp_path: Path
) -> None:
    assert COMMON["MemoryDenyWriteExecute"] == ["yes"]
    env = environment(database, redis_server.url(), **QUICK)
    denied = [sys.executable, "-c", DENIED, str(BIN / words[0]), *words[1:]]
    with Process(denied, env, tmp_path / "log") as process:
        if words is WORKER:
            eventually(lambda: process.popen.poll() == 99 or process.get("/readyz").status_code == 200)
        else:
            eventually(lambda: process.popen.poll() == 99 or redis.llen("dramatiq:sweeps") > 0)
        if process.popen.poll() == 99:
            pytest.skip("this kernel has no such switch (Linux 6.3 has)")
        assert process.end() == 0
