"""A whole replica, as `sb-worker run` starts it: memory, CPU until it works, CPU and commands at rest, lateness."""

from __future__ import annotations

import compileall
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

import psutil
import psycopg
import redis as redis_py

from app.demo.ports import reserved_port
from bench.measurement import Arms, Figure, Measurement, NotHere, Size, measurement
from bench.meters import family, family_cpu, one, proportional_mebibytes, rates
from bench.receiver import receiver
from bench.results import ROOT
from bench.world import World, world
from tests.support.processes import SCHEDULER, WORKER, Process
from tests.support.waiting import eventually

_BARE = (("dramatiq", "bench.bare", "--processes", "1", "--threads", "8"), ("periodiq", "bench.bare"))
#: What `bench.bare` leaves when it has run.
_BARE_DONE = "bare-done"
_RUNS = "SELECT count(*) FROM secrets_bridge_worker.sweep_run WHERE outcome = 'success'"
_SENT = """
SELECT count(*) FROM secrets_bridge_worker.notification_delivery WHERE target = 'webhook' AND state = 'delivered'
"""
_AGENT = "INSERT INTO agents (name, secret_hash, last_seen_at) VALUES (gen_random_uuid()::text, '\\x01', '2026-01-01')"
#: Four sweeps a second.
FOUR = {f"SB_SWEEP_{name}_INTERVAL": "1s" for name in ("WRAPS", "SECRETS", "AGENTS", "JOBS")}
_LATENESS = """
SELECT percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY 1000 * extract(epoch FROM started_at - slot)::float8)
  FROM secrets_bridge_worker.sweep_run WHERE outcome = 'success' AND started_at > %s
"""


@contextmanager
def _ours(here: World, **more: str) -> Iterator[Process]:
    """Yield a replica that has started."""
    with reserved_port() as port:
        env = here.usual(SB_NOTIFICATION_LOCAL_ADDR=f"127.0.0.1:{port}", **more)
        with here.process(("sb-worker", "run"), "replica", env) as replica:
            yield replica
            replica.end()


@contextmanager
def _bare(here: World) -> Iterator[list[Process]]:
    """Yield Dramatiq and periodiq with next to nothing, started."""
    with ExitStack() as stack:
        env = {**here.usual(), "PYTHONPATH": str(ROOT)}
        yield [stack.enter_context(here.process(command, "bare", env)) for command in _BARE]


def _start(**more: str) -> dict[str, float]:
    """Start a replica with a webhook; return its CPU and time until all of it has worked once, and its memory then."""
    with world() as here, receiver() as hook:
        here.sql.execute(_AGENT)
        started = time.monotonic()
        with _ours(here, SB_NOTIFICATION_WEBHOOK_URL=hook.url, **more) as replica:
            eventually(lambda: one(here.sql, _RUNS))
            first_run = time.monotonic() - started
            replica.ready()
            cpu = family_cpu(replica.popen.pid)
            eventually(lambda: one(here.sql, _SENT))
            time.sleep(2)
            memory, processes = proportional_mebibytes(replica.popen.pid), len(family(replica.popen.pid))
    return {"memory": memory, "processes": processes, "cpu_until_run": cpu, "seconds_until_run": first_run}


def _start_bare() -> dict[str, float]:
    with world() as here, redis_py.Redis(port=here.redis.port) as client, _bare(here) as processes:
        started = time.monotonic()
        eventually(lambda: client.get(_BARE_DONE))
        return {
            "memory": sum(proportional_mebibytes(process.popen.pid) for process in processes),
            "cpu_until_run": sum(family_cpu(process.popen.pid) for process in processes),
            "seconds_until_run": time.monotonic() - started,
        }


def _replica(name: str, what: str, memory: float, **more: str) -> Measurement:
    figures = (
        Figure("memory", "memory of all processes (PSS)", "MiB", memory, less=True),
        Figure("cpu_until_run", "CPU until ready and the first run", "s", 3.0, less=True),
        Figure("seconds_until_run", "time until the first run", "s"),
        Figure("processes", "processes"),
    )

    @measurement(name, what, best="Dramatiq and periodiq with an empty actor", figures=figures)
    def opened(size: Size) -> Iterator[Arms]:
        del size
        for variable in more:
            if variable not in (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8"):
                raise NotHere(f"no setting {variable}")
        for room in ("app", "actors", "sinks", "bench"):  # as an image has it; a check-out is compiled at each start
            compileall.compile_dir(ROOT / room, quiet=1)
        yield Arms(_start_bare, lambda: _start(**more))

    return opened


@measurement(
    "idle",
    "`sb-worker run` at rest, every cadence by default",
    best="Dramatiq and periodiq with an empty actor",
    figures=(
        Figure("commands", "Redis commands a second, those of scripts included", "/s", 10, less=True),
        Figure("cpu_percent", "CPU of all processes", "% of a core", 0.5, less=True),
        Figure("redis_cpu_percent", "CPU of Redis", "% of a core"),
    ),
)
def _idle(size: Size) -> Iterator[Arms]:
    seconds = size.of(12, quick=4)
    with world() as here, world() as beside, _ours(here) as replica, _bare(beside) as processes:
        runs = one(here.sql, _RUNS)
        eventually(lambda: one(here.sql, _RUNS) > runs)
        replica.ready()
        time.sleep(4)  # what a start leaves to do is done by then
        yield Arms(
            lambda: _rest(beside, [process.popen.pid for process in processes], seconds),
            lambda: _rest(here, [replica.popen.pid], seconds),
        )


def _rest(here: World, pids: list[int], seconds: float) -> dict[str, float]:
    """Look on for so many seconds."""
    assert here.redis.process is not None
    redis_pid = here.redis.process.pid

    def now() -> tuple[float, float, float]:
        return commands(here), sum(family_cpu(pid) for pid in pids), family_cpu(redis_pid)

    sent, cpu, redis_cpu = rates(now, seconds)
    return {"commands": sent, "cpu_percent": cpu * 100, "redis_cpu_percent": redis_cpu * 100}


def commands(here: World) -> float:
    """Return how many commands Redis has executed, those of scripts included."""
    with redis_py.Redis(port=here.redis.port) as client:
        info = client.info("stats")
    assert isinstance(info, dict)
    return float(info["total_commands_processed"])


@measurement(
    "lateness",
    "how late runs start, four sweeps a second",
    best="a thread that sleeps until each full second",
    figures=(
        Figure("p50", "median", "ms", 5, less=True),
        Figure("p99", "99th percentile", "ms", 25, less=True),
        Figure("cpu_run", "CPU of the worker for a run, its waits included", "ms"),
        Figure("commands", "Redis commands a second, those of scripts included", "/s"),
    ),
)
def _lateness(size: Size) -> Iterator[Arms]:
    seconds = size.of(15, quick=5)
    with (
        world() as here,
        here.process(WORKER, "worker", here.usual(**FOUR)) as worker,
        here.process(SCHEDULER, "scheduler", here.usual(**FOUR)) as scheduler,
    ):
        worker.ready()
        eventually(lambda: one(here.sql, _RUNS) >= 8)

        def baseline() -> Mapping[str, float]:
            late = sorted(_oversleep(seconds))
            return {"p50": late[len(late) // 2], "p99": late[-1]}

        def ours() -> Mapping[str, float]:
            since = one(here.sql, "SELECT now()")
            rest = _rest(here, [worker.popen.pid], seconds)
            row = here.sql.execute(_LATENESS, [since]).fetchone()
            assert row is not None
            cpu = rest["cpu_percent"] / 100 * 1000 / len(FOUR)
            return {"p50": row[0][0], "p99": row[0][1], "commands": rest["commands"], "cpu_run": cpu}

        yield Arms(baseline, ours)
        for process in (worker, scheduler):
            process.end()


def _oversleep(seconds: int) -> Iterator[float]:
    """Sleep until each of so many full seconds; yield by how many milliseconds that was too long."""
    for _ in range(seconds):
        due = int(time.time()) + 1
        time.sleep(due - time.time())
        yield (time.time() - due) * 1000


@measurement(
    "failover",
    "the holder of a lock killed with SIGKILL in its run, default lease: until another replica has done a run",
    best="",
    figures=(Figure("seconds", "time without a run", "s", 5, less=True),),
)
def _failover(size: Size) -> Iterator[Arms]:
    del size
    every = {"SB_SWEEP_WRAPS_INTERVAL": "1s"}
    with world() as here, ExitStack() as stack:
        command = (*WORKER, "--queues", "sweeps")
        started: dict[str, Process] = {}

        def start(name: str) -> None:
            env = here.usual(**every)
            env["DATABASE_URL"] += f"?application_name={name}"
            started[name] = stack.enter_context(here.process(command, name, env)).ready()

        start("replica0")
        start("replica1")
        stack.enter_context(here.process(SCHEDULER, "scheduler", here.usual(**every)))

        def ours() -> Mapping[str, float]:
            runs = one(here.sql, _RUNS)
            eventually(lambda: one(here.sql, _RUNS) > runs)
            holder, killed = _kill_holder(here, started)
            runs = one(here.sql, _WRAP_RUNS)
            eventually(lambda: one(here.sql, _WRAP_RUNS) > runs)
            seconds = time.monotonic() - killed
            del started[holder]
            start(f"replica{int(holder[len('replica') :]) + 2}")
            return {"seconds": seconds}

        yield Arms(None, ours)


_WRAP_RUNS = f"{_RUNS} AND name = 'wraps-expired'"
_WAITING = """
SELECT application_name FROM pg_stat_activity
 WHERE wait_event_type = 'Lock' AND application_name LIKE 'replica%' LIMIT 1
"""


def _kill_holder(here: World, workers: Mapping[str, Process]) -> tuple[str, float]:
    """Kill, in the middle of a sweep of wraps, whoever does it; return its name and when that was."""
    with psycopg.connect(here.postgres.url()) as blocker:
        blocker.execute("LOCK TABLE secret_wraps IN ACCESS EXCLUSIVE MODE")
        (holder,) = eventually(lambda: here.sql.execute(_WAITING).fetchone())
        for process in reversed(family(workers[holder].popen.pid)):
            with suppress(psutil.NoSuchProcess):
                os.kill(process.pid, signal.SIGKILL)
        return holder, time.monotonic()


REPLICAS = (
    _replica("replica", "`sb-worker run` with a webhook, two Dramatiq processes", 140),
    _replica(
        "replica-all",
        "`sb-worker run` with a webhook, one Dramatiq process (SB_WORKER_ROLE=all)",
        110,
        SB_WORKER_ROLE="all",
    ),
    _idle,
    _lateness,
    _failover,
)
