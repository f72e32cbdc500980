"""A stop at any moment ends every process with status 0, and a child that dies at boot ends its main process."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import redis as redis_py

from app.demo.ports import reserved_port
from app.demo.servers import Redis
from tests.support.processes import QUICK, SCHEDULER, WORKER, Process, environment
from tests.support.rights.acl import GrantedRedis
from tests.support.waiting import HUNG_PROCESS, eventually

AWAY = {"REDIS_URL": "redis://127.0.0.1:1/0"}
#: Ticks that take up most of a second, so that many stops meet one.
BUSY = {**QUICK, "SB_WORKER_SHUTDOWN_GRACE": "60s"}


@pytest.fixture
def env(database: str, redis: redis_py.Redis, redis_server: Redis) -> dict[str, str]:
    return environment(database, redis_server.url(), **BUSY)


def spoken(process: Process) -> bool:
    """Return whether it has said something; periodiq has a line of its own, before it imports us."""
    return '"msg"' in process.text or process.popen.poll() is not None


def stopped(process: Process, until: Callable[[Process], object], spread: float) -> int:
    """Stop a process at a random moment of the seconds after a condition, and return its status."""
    eventually(lambda: until(process))
    time.sleep(random.uniform(0, spread))
    return process.end()


@pytest.mark.parametrize("away", [False, True], ids=["Redis there", "Redis away"])
def test_a_scheduler_ends_with_0_whenever_it_is_stopped(env: dict[str, str], tmp_path: Path, away: bool) -> None:
    for turn in range(6):
        log = tmp_path / f"{turn}.log"
        with Process(SCHEDULER, {**env, **(AWAY if away else {})}, log) as scheduler:
            assert stopped(scheduler, spoken, 2.5) == 0, scheduler.text


def test_no_alarm_of_periodiq_ends_a_scheduler_that_was_stopped(env: dict[str, str], tmp_path: Path) -> None:
    """It sets none for less than a second; with this cadence one goes off each two seconds, on the second."""
    cadence = {name: "2s" for name in QUICK if name.endswith("_INTERVAL")}
    for turn in range(8):
        with Process(SCHEDULER, {**env, **cadence}, tmp_path / f"{turn}.log") as scheduler:
            eventually(lambda: spoken(scheduler))
            time.sleep(2.0 - time.time() % 2.0 + 2.0 - random.uniform(0.02, 0.25))
            assert scheduler.end() == 0, scheduler.text


def test_a_worker_ends_with_0_whenever_it_is_stopped(env: dict[str, str], tmp_path: Path) -> None:
    with Process(SCHEDULER, env, tmp_path / "scheduler.log"):
        for turn in range(6):
            with Process(WORKER, env, tmp_path / f"{turn}.log") as worker:
                assert stopped(worker, spoken, 3.0) == 0, worker.text
                assert "Traceback" not in worker.text


def test_a_worker_ends_with_0_while_redis_is_away(database: str, tmp_path: Path) -> None:
    with reserved_port() as port, GrantedRedis(tmp_path, port=port) as server:
        env = environment(database, server.url(), **BUSY)
        with Process(WORKER, env, tmp_path / "worker.log") as worker:
            worker.ready()
            server.kill()
            assert stopped(worker, lambda one: "Redis is away" in one.text, 1.0) == 0, worker.text
            assert "Traceback" not in worker.text


def test_a_worker_ends_with_0_while_it_still_imports(env: dict[str, str], tmp_path: Path) -> None:
    """The main process hears nothing while its child boots, so the child is signalled as well, as some hosts do."""
    for turn in range(4):
        with Process(WORKER, env, tmp_path / f"{turn}.log") as worker:
            (child,) = eventually(lambda: worker.workers)
            eventually(partial(signal_is_caught, child.pid, signal.SIGTERM))
            time.sleep(random.uniform(0.05, 0.5))
            child.send_signal(signal.SIGTERM)
            assert worker.end() == 0, worker.text
            assert "Traceback" not in worker.text


def test_a_replica_ends_with_0_whenever_it_is_stopped(env: dict[str, str], tmp_path: Path) -> None:
    for turn in range(4):
        with reserved_port() as port:
            own = {**env, "SB_WORKER_LOCAL_ADDR": "127.0.0.1:0", "SB_NOTIFICATION_LOCAL_ADDR": f"127.0.0.1:{port}"}
            words = ("sb-worker", "run", "--procfile", str(Path(__file__).parents[2] / "Procfile"))
            with Process(words, own, tmp_path / f"{turn}.log") as replica:
                assert stopped(replica, spoken, 4.0) == 0, replica.text


@pytest.mark.skipif(sys.platform != "linux", reason="looks at Linux's /proc")
def test_a_stop_of_a_replica_waits_for_its_runner(env: dict[str, str], tmp_path: Path) -> None:
    """Before it is there, and across the exec that starts it."""
    for turn in range(4):
        with Process(("sb-worker", "run"), env, tmp_path / f"{turn}.log") as replica:
            eventually(lambda: signal_is_held(replica.popen.pid, signal.SIGTERM))
            assert stopped(replica, lambda _: True, 1.0) == 0, replica.text


@pytest.mark.skipif(sys.platform != "linux", reason="looks at Linux's /proc")
def test_a_child_that_is_killed_at_boot_ends_its_main_process(env: dict[str, str], tmp_path: Path) -> None:
    """And does so because it is told to wait for the child no longer: one that may wait still does."""
    (tmp_path / "never_there.py").write_text(
        "import time\ntime.sleep(3600)\n"
    )  # so that no boot is over before the kill
    words = (*WORKER[:2], "never_there", *WORKER[2:], "--path", ".", str(tmp_path))
    longer = (*words, "--worker-fork-timeout", str(2 * HUNG_PROCESS * 1000))
    with Process(longer, env, tmp_path / "waits.log") as waits, Process(words, env, tmp_path / "worker.log") as worker:
        for each in (waits, worker):
            (child,) = eventually(partial(getattr, each, "workers"))
            child.kill()
        assert worker.popen.wait(HUNG_PROCESS) != 0
        assert "exited unexpectedly" in worker.text
        assert waits.popen.poll() is None


def signal_is_caught(pid: int, number: signal.Signals) -> bool:
    return sys.platform != "linux" or _bit(pid, "SigCgt", number)


def signal_is_held(pid: int, number: signal.Signals) -> bool:
    return _bit(pid, "SigBlk", number)


def _bit(pid: int, field: str, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith(field))
    return bool(int(mask, 16) >> (number - 1) & 1)
