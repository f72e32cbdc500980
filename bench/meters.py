"""What work costs: time, the CPU of PostgreSQL's backends, WAL, round trips, memory, a client beside it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import psutil
from psycopg import Connection

from bench.world import MEASURED, World, child

_BACKENDS = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
_WAL = "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"
_TRANSACTIONS = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"


def cpu_seconds(pid: int) -> float:
    """Return the CPU that a process of one thread has used; on Linux to the nanosecond, elsewhere to 10 ms."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except OSError:
        return float(sum(psutil.Process(pid).cpu_times()[:2]))


def rates(now: Callable[[], Sequence[float]], seconds: float) -> list[float]:
    """Look on for so many seconds; return by how much each of some counters grew in one."""
    before, started = now(), time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - started
    return [(end - begin) / passed for begin, end in zip(before, now(), strict=True)]


class Meter:
    """Measures what happens on the connections that are named `MEASURED`, from `start` to `stop`."""

    def __init__(self, here: World, proxy: Network | None = None) -> None:
        """Round trips are counted by a proxy that the connections lead through, if there is one."""
        self._here, self._proxy = here, proxy
        self._cpu: dict[int, float] = {}
        self._wal = self._started = 0.0
        self._round_trips = 0

    def start(self) -> Self:
        """Begin; connections that come later count from their first moment."""
        self._cpu, self._wal = self._backends(), self._bytes()
        self._round_trips = self._proxy.round_trips if self._proxy else 0
        self._started = time.perf_counter()
        return self

    def stop(self) -> dict[str, float]:
        """Return seconds, CPU seconds of the backends and bytes of WAL; while the connections are still there."""
        seconds = time.perf_counter() - self._started
        cpu = sum(used - self._cpu.get(pid, 0.0) for pid, used in self._backends().items())
        got: dict[str, float] = {"seconds": seconds, "backend_cpu": cpu, "wal": self._bytes() - self._wal}
        return got | ({"round_trips": self._proxy.round_trips - self._round_trips} if self._proxy else {})

    def _backends(self) -> dict[int, float]:
        return {pid: cpu_seconds(pid) for (pid,) in self._here.sql.execute(_BACKENDS, [MEASURED])}

    def _bytes(self) -> float:
        return float(one(self._here.sql, _WAL))


def one(sql: Connection[Any], query: str) -> Any:
    """Return the only value of a query."""
    row = sql.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def transactions(here: World) -> int:
    """Return how many transactions have ended, on connections that are closed by now."""
    while one(here.sql, f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{MEASURED}'"):
        time.sleep(0.01)
    here.sql.execute("SELECT pg_stat_clear_snapshot()")
    count: int = one(here.sql, _TRANSACTIONS)
    return count


class Client:
    """A process that updates rows one after the other, and how long each update took."""

    def __init__(self, here: World, table: str, rows: str) -> None:
        """`rows` is the condition of those that it updates."""
        command = [sys.executable, "-m", "bench.client", here.postgres.url(), table, rows]
        self._process = child(command, stdin=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self._out.readline()

    def go(self) -> None:
        """Have it begin, and wait until it has."""
        print("go", file=self._in, flush=True)
        self._out.readline()

    def end(self) -> dict[str, float]:
        """End it; return how long it has waited at worst, milliseconds."""
        out, _ = self._process.communicate("stop\n", timeout=60)
        return {"client_worst": max(json.loads(out))}


class Network:
    """A proxy process that adds latency to each round trip, and counts them."""

    def __init__(self, port: int, milliseconds: float = 0.0) -> None:
        command = [sys.executable, "-m", "bench.network", str(port), str(milliseconds)]
        self._process = child(command, stdin=subprocess.PIPE)
        self.port = self._ask()

    @property
    def round_trips(self) -> int:
        """How often a client has spoken after it had heard the server, or for the first time."""
        assert self._process.stdin is not None
        print("count", file=self._process.stdin, flush=True)
        return self._ask()

    def _ask(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End it, with all connections."""
        self._process.communicate(timeout=30)


@contextmanager
def network(port: int, milliseconds: float = 0.0) -> Iterator[Network]:
    """Yield a proxy before this port."""
    proxy = Network(port, milliseconds)
    try:
        yield proxy
    finally:
        proxy.close()


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all its descendants."""
    first = psutil.Process(pid)
    return [first, *first.children(recursive=True)]


def family_cpu(pid: int) -> float:
    """Return the CPU seconds of a process and its descendants, those that have ended included."""
    times = [process.cpu_times() for process in family(pid)]
    ended = psutil.Process(pid).cpu_times()
    return sum(spent.user + spent.system for spent in times) + ended.children_user + ended.children_system


def proportional_mebibytes(pid: int) -> float:
    """Return the memory of a process and its descendants, with shared pages counted once (PSS), MiB."""
    return float(sum(process.memory_full_info().pss for process in family(pid))) / 2**20
