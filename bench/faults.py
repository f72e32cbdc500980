"""What sweeps do while something is wrong: all at a cadence of a second, two workers and two schedulers.

    python -m bench.faults [seconds] [fault ...]

One round a fault, each on servers of its own, with a control that has none: the fault lasts for so many seconds (40),
between 8 before it and 15 after it. Printed are, for each round, the runs and how many its time would allow, slots run
twice (which must be none), and the longest time that a sweeper did not run, before the fault and in all. Clocks are
moved by a preloaded library that this compiles (needs gcc; those rounds are left out without it). All traffic stays on
the loopback interface, and all processes end with the round.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import redis

from app.demo.servers import Postgres, Redis
from app.storage import migrations
from tests.support.processes import QUICK, SCHEDULER, WORKER, Process, environment
from tests.support.proxy import Proxy

BEFORE, AFTER = 8, 15
SWEEPERS = sum(name.endswith("_INTERVAL") for name in QUICK)
RUNS = "SELECT name, slot::text FROM secrets_bridge_worker.sweep_run WHERE outcome = 'success'"
CLOCK = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile int64_t *ahead;
__attribute__((constructor)) static void look(void) {
  int file = open(getenv("CLOCK_AHEAD"), O_RDONLY);
  if (file >= 0) ahead = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0), close(file);
}
static int64_t by(void) { return ahead && ahead != MAP_FAILED ? *ahead : 0; }
int clock_gettime(clockid_t id, struct timespec *at) {
  int done = syscall(SYS_clock_gettime, id, at);
  if (!done && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += by();
  return done;
}
int gettimeofday(struct timeval *at, void *zone) {
  struct timespec exact;
  (void)zone;
  if (clock_gettime(CLOCK_REALTIME, &exact)) return -1;
  at->tv_sec = exact.tv_sec, at->tv_usec = exact.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *at) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (at) *at = exact.tv_sec;
  return exact.tv_sec;
}
"""


class World:
    """The servers and processes of one round."""

    def __init__(self, directory: Path, stack: ExitStack, clocks: dict[str, int], *, standby: bool) -> None:
        self.directory = directory
        self.clocks = {name: Clock(directory, name) for name in clocks}
        self.databases = [self._postgres(stack, "postgres")]
        if standby:
            self.databases.append(self._postgres(stack, "second"))
        with self._clock("redis"):
            self.redis = stack.enter_context(Redis(self._folder("redis")))
        self.second_redis = stack.enter_context(Redis(self._folder("redis2")))
        first = urlsplit(self.databases[0])
        self.postgres_proxy = stack.enter_context(Proxy(first.port or 0))
        self.redis_proxy = stack.enter_context(Proxy(self.redis.port))
        hosts = ",".join(f"127.0.0.1:{urlsplit(url).port}" for url in self.databases)
        url = f"postgres://postgres@{hosts}/secrets_bridge?target_session_attrs=read-write"
        if not standby:
            url = self.databases[0].replace(f":{first.port}/", f":{self.postgres_proxy.port}/")
        keys = self.redis.url().replace(f":{self.redis.port}", f":{self.redis_proxy.port}")
        through = environment(url, keys, **QUICK)
        well = {**through, "DATABASE_URL": self.databases[0]} if not standby else through
        worker = (*WORKER, "--queues", "sweeps")
        self.workers = [
            stack.enter_context(Process(worker, {**env, **self.preload(name)}, directory / f"{name}.log"))
            for name, env in (("worker", through), ("well", well))
        ]
        for name in ("scheduler", "scheduler2"):
            stack.enter_context(Process(SCHEDULER, {**through, **self.preload(name)}, directory / f"{name}.log"))
        for process in self.workers:
            process.ready()

    def preload(self, name: str) -> dict[str, str]:
        """Return the environment of a process whose clock may be moved."""
        return self.clocks[name].environ if name in self.clocks else {}

    def runs(self) -> list[tuple[Any, ...]]:
        """Return the successful runs of all databases."""
        found: list[tuple[Any, ...]] = []
        for url in self.databases:
            with psycopg.connect(url) as connection:
                found += connection.execute(RUNS).fetchall()
        return found

    def _folder(self, name: str) -> Path:
        folder = self.directory / name
        folder.mkdir()
        return folder

    def _postgres(self, stack: ExitStack, name: str) -> str:
        with self._clock(name):
            server = stack.enter_context(Postgres(self._folder(name)))
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(Path("app/demo/control_plane.sql").read_bytes())
            migrations.migrate(connection)
        return server.url()

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        given = self.preload(name)
        os.environ.update(given)
        try:
            yield
        finally:
            for variable in given:
                del os.environ[variable]


class Clock:
    """A clock that can be moved while the process that it was preloaded into runs."""

    def __init__(self, directory: Path, name: str) -> None:
        self._file = directory / f"{name}.ahead"
        self.move(0)
        self._file.chmod(0o644)
        self.environ = {"LD_PRELOAD": str(library(directory)), "CLOCK_AHEAD": str(self._file)}

    def move(self, seconds: int) -> None:
        """Move it to so many seconds ahead of the machine's."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("q", seconds))


def library(directory: Path) -> Path:
    """Return the compiled library."""
    compiled = directory / "clock.so"
    if not compiled.exists():
        source = directory / "clock.c"
        source.write_text(CLOCK)
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", compiled, source], check=True)
        compiled.chmod(0o755)
    return compiled


Fault = Callable[[World], Callable[[], object]]


def nothing(_world: World) -> Callable[[], object]:
    """Break nothing: the control."""
    return lambda: None


def silent_postgres(world: World) -> Callable[[], object]:
    """Let the first worker's connections to PostgreSQL go silent, with nothing closed."""
    world.postgres_proxy.silence()
    return lambda: None


def silent_redis(world: World) -> Callable[[], object]:
    """Let all connections to Redis go silent, with nothing closed."""
    world.redis_proxy.silence()
    return lambda: None


def demoted_redis(world: World) -> Callable[[], object]:
    """A planned failover: the address leads to the new master, old connections stay, to one that is a replica now."""
    world.redis_proxy.lead_to(world.second_redis.port)
    with redis.Redis.from_url(world.redis.url()) as old:
        old.replicaof("127.0.0.1", world.second_redis.port)
    return lambda: None


def standby(world: World) -> Callable[[], object]:
    """The first server takes no writes any more, its connections stay; the URL names both."""
    with psycopg.connect(world.databases[0], autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        connection.execute("SELECT pg_reload_conf()")
    return lambda: None


def moved(**seconds: int) -> Fault:
    """Return a fault that moves clocks, and moves them back."""

    def fault(world: World) -> Callable[[], object]:
        for name, ahead in seconds.items():
            world.clocks[name].move(ahead)

        def heal() -> None:
            for name in seconds:
                world.clocks[name].move(0)

        return heal

    return fault


FAULTS: dict[str, tuple[Fault, dict[str, int]]] = {
    "none": (nothing, {}),
    "silent-postgres": (silent_postgres, {}),
    "silent-redis": (silent_redis, {}),
    "demoted-redis": (demoted_redis, {}),
    "standby": (standby, {}),
    **{
        f"{name}{ahead:+d}s": (moved(**{name: ahead}), {name: ahead})
        for name, ahead in (
            ("scheduler", 600),
            ("scheduler", -600),
            ("worker", 86_400),
            ("redis", 10),
            ("redis", -3600),
            ("postgres", 10),
            ("postgres", 600),
        )
    },
}


def play(name: str, seconds: int) -> dict[str, object]:
    """Play one round and return its figures."""
    fault, clocks = FAULTS[name]
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        os.chmod(place, 0o755)  # noqa: PTH101 - PostgreSQL's user reads the library
        world = World(Path(place), stack, clocks, standby=name == "standby")
        watch = Watch(world)
        watch.look(BEFORE)
        usual = watch.longest_gap
        heal = fault(world)
        watch.look(seconds)
        heal()
        watch.look(AFTER)
        runs = world.runs()
    return {
        "fault": name,
        "seconds": BEFORE + seconds + AFTER,
        "runs": len(runs),
        "expected": (BEFORE + seconds + AFTER) * SWEEPERS,
        "twice": len(runs) - len(set(runs)),
        "longest_gap_before": round(usual, 1),
        "longest_gap": round(watch.longest_gap, 1),
    }


class Watch:
    """Sees by a clock of its own how long each sweeper has not run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._seen: Counter[str] = Counter()
        self._last: dict[str, float] = {}
        self.longest_gap = 0.0

    def look(self, seconds: float) -> None:
        """Look for so long."""
        ends = time.monotonic() + seconds
        while (now := time.monotonic()) < ends:
            seen = Counter(name for name, _ in self._world.runs())
            for name in seen | self._seen:
                if seen[name] > self._seen[name]:
                    self._last[name] = now
                self.longest_gap = max(self.longest_gap, now - self._last[name])
            self._seen = seen
            time.sleep(0.2)


def main() -> None:
    """Play the rounds and print one JSON object each."""
    arguments = sys.argv[1:]
    seconds = int(arguments.pop(0)) if arguments and arguments[0].isdecimal() else 40
    for name in arguments or FAULTS:
        if FAULTS[name][1] and shutil.which("gcc") is None:
            continue
        with suppress(BrokenPipeError):
            print(json.dumps(play(name, seconds)), flush=True)


if __name__ == "__main__":
    main()
