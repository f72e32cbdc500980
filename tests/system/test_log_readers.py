"""Whoever reads the log may stop to, or go away: sweeps go on, and every process still ends when it is told to."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from psycopg import Connection

from app.demo.ports import reserved_port
from app.demo.servers import Redis
from app.supervisor.parent_death import signal_at_parent_death
from tests.support.processes import BIN, QUICK, ROOT, SCHEDULER, WORKER, Process, environment
from tests.support.rows import column
from tests.support.waiting import HUNG_PROCESS, eventually

SLOTS = "SELECT count(*) FROM secrets_bridge_worker.sweep_run WHERE outcome = 'success'"


@contextmanager
def started(env: dict[str, str], words: tuple[str, ...], output: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command that writes its log to this pipe or terminal; whatever happens, nothing of it is left."""
    process = subprocess.Popen(
        [str(BIN / words[0]), *words[1:]],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=signal_at_parent_death,  # noqa: PLW1509 - only prctl is called
    )
    os.close(output)
    family: list[psutil.Process] = []
    try:
        yield process
    finally:
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        for child in family:
            with suppress(psutil.NoSuchProcess):
                child.kill()


def fill(reader: int, process: subprocess.Popen[bytes]) -> None:
    """Let nobody read any more: fill the pipe to the last byte, by a way into it of our own."""
    del reader
    writer = os.open(f"/proc/{process.pid}/fd/2", os.O_WRONLY | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x")
    os.close(writer)


def stop(reader: int, process: subprocess.Popen[bytes]) -> None:
    """Do what Ctrl-S on a terminal does."""
    del process
    os.write(reader, b"\x13")


def close(reader: int, process: subprocess.Popen[bytes]) -> None:
    """Go away."""
    del process
    os.close(reader)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds the pipe in /proc")
@pytest.mark.parametrize(
    ("opened", "stop_reading"), [(os.pipe, fill), (os.pipe, close), (os.openpty, stop), (os.openpty, close)]
)
@pytest.mark.parametrize("words", [(*WORKER, "--queues", "sweeps"), ("sb-worker", "run")], ids=["worker", "replica"])
def test_sweeps_go_on_and_a_process_ends_when_nobody_reads_its_log(  # noqa: PLR0913, PLR0917 - fixtures
    words: tuple[str, ...],
    opened: Callable[[], tuple[int, int]],
    stop_reading: Any,
    database: str,
    redis_server: Redis,
    sql: Connection[Any],
    tmp_path: Path,
) -> None:
    with reserved_port() as port, reserved_port() as other:
        places = {
            "SB_WORKER_LOCAL_ADDR": f"127.0.0.1:{port}",
            "SB_NOTIFICATION_LOCAL_ADDR": f"127.0.0.1:{other}",
        }
        env = environment(database, redis_server.url(), **QUICK, LOG_LEVEL="debug", **places)
        reader, writer = opened()
        os.set_blocking(reader, False)
        with (
            started(env, words, writer) as process,
            Process(SCHEDULER, env, tmp_path / "scheduler.log"),
        ):

            def one_more(than: int) -> bool:
                with suppress(OSError):
                    os.read(reader, 1 << 20)
                return bool(column(sql, SLOTS)[0] > than)

            eventually(lambda: one_more(0))
            stop_reading(reader, process)
            # More lines than a pipe has room for: each run writes several at this level.
            done = column(sql, SLOTS)[0]
            eventually(lambda: column(sql, SLOTS)[0] > done + 60)
            process.send_signal(signal.SIGTERM)
            assert process.wait(HUNG_PROCESS) == 0
        if stop_reading is not close:
            os.close(reader)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds the pipe in /proc")
def test_when_a_replica_is_killed_nothing_of_it_lives_on(
    database: str, redis_server: Redis, sql: Connection[Any]
) -> None:
    with reserved_port() as port, reserved_port() as other:
        env = environment(
            database,
            redis_server.url(),
            **QUICK,
            LOG_LEVEL="debug",
            SB_WORKER_LOCAL_ADDR=f"127.0.0.1:{port}",
            SB_NOTIFICATION_LOCAL_ADDR=f"127.0.0.1:{other}",
        )
        with started(env, ("sb-worker", "run"), os.open(os.devnull, os.O_WRONLY)) as process:
            eventually(lambda: column(sql, SLOTS)[0] > 8)
            family = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            gone, alive = psutil.wait_procs(family, timeout=HUNG_PROCESS)
            for child in alive:
                child.kill()
            assert len(gone) >= 5
            assert not alive
