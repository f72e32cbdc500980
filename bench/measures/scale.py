"""More of the same against one database: workers with a backlog, notifiers with events, and what losers cost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

from bench.measurement import Arms, Figure, Measurement, Size, measurement
from bench.measures.deliveries import Notifiers
from bench.measures.replicas import commands
from bench.measures.sweeps import AGENTS, JOBS, SECRETS, WRAPS, empty, insert
from bench.meters import family_cpu, one, rates
from bench.world import QUIET, world
from tests.support.processes import SCHEDULER, WORKER
from tests.support.waiting import eventually

#: Schedulers beside the first one, all of whose ticks are lost.
_MORE = 7
_SWEEPER = (*WORKER, "--queues", "sweeps")
_DUE = (WRAPS, SECRETS, AGENTS, JOBS)
_LAST = "SELECT coalesce(max(id), 0) FROM secrets_bridge_worker.sweep_run"
_SWEPT = """
SELECT coalesce(sum(changed), 0), extract(epoch FROM max(finished_at) - min(started_at))::float8
  FROM secrets_bridge_worker.sweep_run WHERE id > %s AND changed > 0 AND outcome = 'success'
"""


class _Workers:
    """So many workers and a scheduler on servers of their own, every cadence a second."""

    def __init__(self, stack: ExitStack, number: int) -> None:
        self.here = stack.enter_context(world(durable=True, settings=QUIET))
        self.env = self.here.env(SB_WORKER_LOCK_LEASE="15s", SB_WORKER_SWEEP_BUDGET="30s")
        self._processes = [
            stack.enter_context(self.here.process(_SWEEPER, f"worker{n}", self.env)) for n in range(number)
        ]
        for process in self._processes:
            process.ready()
        stack.enter_context(self.here.process(SCHEDULER, "scheduler", self.env))
        eventually(lambda: one(self.here.sql, _LAST) >= 16)

    def sweep(self, rows: int) -> dict[str, float]:
        """Have four backlogs fall due at once; return the rate, and what a row costs."""
        start = self._fill(rows)
        last, before = one(self.here.sql, _LAST), self._cpu()
        while one(self.here.sql, f"SELECT now() < {start}"):
            last, before = one(self.here.sql, _LAST), self._cpu()
            time.sleep(0.05)
        eventually(lambda: self._swept(last)[0] >= rows // 2 * len(_DUE))
        cpu = self._cpu() - before
        changed, seconds = self._swept(last)
        return {"rate": changed / seconds, "cpu": cpu / changed * 1e6}

    def _fill(self, rows: int) -> str:
        """Fill the tables with rows half of which are due in a while; return from when on, as SQL."""
        ahead = 2 + rows / 8_000
        while True:
            begun = time.monotonic()
            text = one(self.here.sql, f"SELECT quote_literal((now() + interval '{ahead} s')::text)")
            start = f"{text}::timestamptz"
            empty(self.here, *_DUE)
            for backlog in _DUE:
                # What is due at the very moment is not due before it has passed.
                then = f"({start} + interval '{backlog.overdue}' - interval '1 ms')"
                insert(self.here, backlog._replace(fill=backlog.fill.replace("now()", then)), rows)
            if one(self.here.sql, f"SELECT now() + interval '1 s' < {start}"):
                return start
            ahead = 2 * (time.monotonic() - begun)  # it took too long: they are being swept already

    def observe(self, seconds: float) -> dict[str, float]:
        """Look on for so many seconds; return what happened in one."""
        cpu, redis_cpu, sent, lost = rates(self._now, seconds)
        return {"cpu_percent": cpu * 100, "redis_cpu_percent": redis_cpu * 100, "commands": sent, "lost": lost}

    def _now(self) -> tuple[float, float, float, float]:
        assert self.here.redis.process is not None
        lost = sum(worker.metric("worker_scheduler_lock_skipped_total") for worker in self._processes)
        return self._cpu(), family_cpu(self.here.redis.process.pid), commands(self.here), lost

    def _cpu(self) -> float:
        return sum(family_cpu(process.popen.pid) for process in self._processes)

    def _swept(self, last: int) -> tuple[int, float]:
        row = self.here.sql.execute(_SWEPT, [last]).fetchone()
        assert row is not None
        return int(row[0]), row[1]


def _workers(number: int) -> Measurement:
    @measurement(
        f"scale-workers-{number}",
        f"four backlogs of 25,000 rows that fall due at once, {number} workers",
        best="one worker",
        figures=(
            Figure("rate", "rows a second, all sweepers", "rows/s", ratio=True),
            Figure("cpu", "own CPU a row, all workers", "µs"),
        ),
    )
    def opened(size: Size) -> Iterator[Arms]:
        rows = size.of(50_000, quick=20_000)
        with ExitStack() as stack:
            alone, several = _Workers(stack, 1), _Workers(stack, number)
            yield Arms(lambda: alone.sweep(rows), lambda: several.sweep(rows))

    return opened


def _notifiers(number: int) -> Measurement:
    @measurement(
        f"scale-notifiers-{number}",
        f"1,500 events to one webhook, {number} notifiers",
        best="one notifier",
        figures=(
            Figure("rate", "deliveries a second", "/s", ratio=True),
            Figure("cpu", "CPU of all notifiers for a delivery", "ms"),
        ),
    )
    def opened(size: Size) -> Iterator[Arms]:
        events = size.of(1_500, quick=400)
        with ExitStack() as stack:
            alone, several = Notifiers(stack, 1), Notifiers(stack, number)
            yield Arms(lambda: alone.deliver(events), lambda: several.deliver(events))

    return opened


@measurement(
    "scale-losers",
    "four workers and eight schedulers, every cadence a second: what ticks cost that somebody else runs",
    best="four workers and one scheduler",
    figures=(
        Figure("cpu_percent", "CPU of all workers", "% of a core"),
        Figure("redis_cpu_percent", "CPU of Redis", "% of a core"),
        Figure("commands", "Redis commands a second, those of scripts included", "/s"),
        Figure("lost", "ticks lost a second", "/s"),
        Figure("losing_cpu", "CPU of a worker for a tick that is lost", "ms"),
    ),
)
def _losers(size: Size) -> Iterator[Arms]:
    seconds = size.of(12, quick=4)
    with ExitStack() as stack:
        workers = _Workers(stack, 4)
        alone: dict[str, float] = {}

        def baseline() -> Mapping[str, float]:
            alone.update(workers.observe(seconds))
            return dict(alone)

        def ours() -> Mapping[str, float]:
            with ExitStack() as more:
                for number in range(_MORE):
                    more.enter_context(workers.here.process(SCHEDULER, f"more{number}", workers.env))
                time.sleep(4)  # until they have started
                got = workers.observe(seconds)
            extra = got["cpu_percent"] - alone["cpu_percent"]
            return {**got, "losing_cpu": max(0.0, extra / 100 * 1000 / max(1.0, got["lost"] - alone["lost"]))}

        yield Arms(baseline, ours)


SCALE = (_workers(2), _workers(4), _notifiers(2), _notifiers(4), _losers)
