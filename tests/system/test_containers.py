"""What containers do to a worker: share /dev/shm with others, have none left, allow few open files."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from psycopg import Connection

from app.demo.servers import Redis
from tests.support.processes import BIN, QUICK, SCHEDULER, WORKER, Process, environment
from tests.support.rows import column
from tests.support.waiting import eventually

RUNS = "SELECT count(*) FROM secrets_bridge_worker.sweep_run WHERE outcome = 'success'"
TWO = ("dramatiq", "app.actors", "--processes", "2", "--threads", "2", "--skip-logging")


@pytest.fixture
def env(database: str, redis: redis_py.Redis, redis_server: Redis) -> dict[str, str]:
    return environment(database, redis_server.url(), **QUICK)


def apart(*options: str) -> list[str]:
    """Return the beginning of a command that runs the rest in namespaces of its own; skip where that is refused."""
    unshare = shutil.which("unshare")
    words = [unshare or "", *options]
    if not unshare or subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us have namespaces of our own")
    return words


def command(words: Sequence[str]) -> list[str]:
    return [str(BIN / words[0]), *words[1:]]


def test_two_containers_that_share_a_directory_do_not_share_numbers(
    env: dict[str, str], tmp_path: Path, sql: Connection[Any]
) -> None:
    """Their main processes have the same id, and so have their workers."""
    container = apart("--pid", "--fork", "--mount-proc", "--kill-child")
    shared = tmp_path / "shm"
    shared.mkdir()
    own = {**env, "SB_WORKER_METRICS_DIR": str(shared)}
    sweeps, sinks = ([*container, *command(TWO), "--queues", queue] for queue in ("sweeps", "sinks"))
    runs = {"name": "worker_scheduler_runs_total", "outcome": "success", "task": "wraps-expired"}
    with Process(sweeps, own, tmp_path / "a.log") as worker, Process(SCHEDULER, own, tmp_path / "s.log"):
        eventually(lambda: worker.metric(**runs) >= 2)
        with Process(sinks, own, tmp_path / "b.log") as notifier:
            notifier.ready()
            before = worker.metric(**runs)
            assert before >= 2
            eventually(lambda: worker.metric(**runs) >= before + 2)
            eventually(lambda: notifier.metric("worker_scheduler_runs_total", task="notification-relay") >= 1)
            assert notifier.metric(**runs) == 0
            assert len(list(shared.iterdir())) == 2
        eventually(lambda: worker.metric(**runs) >= before + 3)
    with Process(sweeps, own, tmp_path / "c.log") as third:
        third.ready()
        assert len(list(shared.iterdir())) == 1  # those of the dead are gone


# A directory for metrics with room for a few pages only.
TINY = 'mount -t tmpfs -o size=16k tmpfs "$SB_WORKER_METRICS_DIR" || exit 99; exec "$@"'


def test_no_room_for_metrics_stops_no_sweep(env: dict[str, str], tmp_path: Path, sql: Connection[Any]) -> None:
    bash = shutil.which("bash") or "bash"
    shared = tmp_path / "shm"
    shared.mkdir()
    words = [*apart("--mount", "--map-root-user"), bash, "-c", TINY, bash, *command(TWO)]
    own = {**env, "SB_WORKER_METRICS_DIR": str(shared)}
    with Process(words, own, tmp_path / "w.log") as worker, Process(SCHEDULER, own, tmp_path / "s.log"):
        eventually(lambda: worker.popen.poll() is not None or worker.get("/readyz").status_code == 200)
        if worker.popen.poll() == 99:
            pytest.skip("this machine does not let us mount")
        eventually(lambda: column(sql, RUNS)[0] >= 8)
        assert worker.metric("worker_metrics_incomplete") == 1
        assert worker.end() == 0
    assert "no room for metrics" in worker.text


def limited(files: int) -> list[str]:
    return [shutil.which("bash") or "bash", "-c", f'ulimit -n {files} && exec "$@"', "bash", *command(WORKER)]


def test_too_few_open_files_are_refused_with_the_number_that_is_needed(env: dict[str, str], tmp_path: Path) -> None:
    with Process(limited(100), env, tmp_path / "worker.log") as worker:
        assert worker.popen.wait(60) == 1
    (line,) = (one["error"] for one in worker.records if one["msg"] == "boot failed")
    assert line.startswith("at most 100 open files are allowed, ")
    assert "Traceback" not in worker.text


def test_the_open_files_that_are_needed_are_enough(env: dict[str, str], tmp_path: Path) -> None:
    with Process(limited(100), env, tmp_path / "refused.log") as worker:
        worker.popen.wait(60)
    (line,) = (one["error"] for one in worker.records if one["msg"] == "boot failed")
    needed = int(line.split(", ")[1].split()[0])
    with Process(limited(needed), env, tmp_path / "w.log") as worker, Process(SCHEDULER, env, tmp_path / "s.log"):
        worker.ready()
        eventually(lambda: worker.metric("worker_scheduler_runs_total", outcome="success") >= 8)
        assert worker.end() == 0
    assert "ERROR" not in {one["level"] for one in worker.records}


def test_a_soft_limit_is_raised(env: dict[str, str], tmp_path: Path) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 1024:
        pytest.skip("the hard limit of this machine is low")
    words = [shutil.which("bash") or "bash", "-c", 'ulimit -Sn 100 && exec "$@"', "bash", *command(WORKER)]
    with Process(words, env, tmp_path / "worker.log") as worker:
        worker.ready()
        assert worker.metric("process_max_fds") > 100 or not Path("/proc").exists()


def test_a_worker_alone_writes_no_file(env: dict[str, str], tmp_path: Path) -> None:
    shared = tmp_path / "shm"
    shared.mkdir()
    with Process(WORKER, {**env, "SB_WORKER_METRICS_DIR": str(shared)}, tmp_path / "worker.log") as worker:
        worker.ready()
        assert list(shared.iterdir()) == []


def test_sweeps_that_nobody_runs_are_shown_and_told(env: dict[str, str], tmp_path: Path) -> None:
    with Process(WORKER, env, tmp_path / "worker.log") as worker:
        worker.ready()
        eventually(lambda: worker.metric("worker_sweep_overdue_seconds", task="wraps-expired") > 3)
        registered = worker.text.count('"scheduler task registered"')
        assert registered >= 4
        eventually(lambda: worker.text.count("sweep overdue in every replica") == registered)
        assert worker.get("/readyz").status_code == 200
        with Process(SCHEDULER, env, tmp_path / "scheduler.log"):
            eventually(lambda: worker.text.count("sweep runs again") == registered)
    assert worker.text.count("sweep overdue in every replica") == registered
