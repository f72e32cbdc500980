"""Single ticks: of a large table where nothing is due, and what one costs in round trips and CPU."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import psycopg
from psycopg import sql as sql_text

from app.sweeping.lock import Tick
from bench.measurement import Arms, Figure, Measurement, NotHere, Size, measurement
from bench.measures.sweeps import WRAPS, fill
from bench.meters import Meter, network, transactions
from bench.results import ROOT
from bench.world import MEASURED, QUIET, World, world
from tests.support.replica import Replica

INDEXES = ROOT / "deploy" / "recommended_indexes.sql"
_SCAN = "SELECT count(*) FROM secret_wraps WHERE expires_at <= now()"
_AS_A_SCAN = (
    "SET max_parallel_workers_per_gather = 0; SET enable_indexscan = off; SET enable_indexonlyscan = off;"
    " SET enable_bitmapscan = off"
)
_TICKS = 40


def _scan(here: World) -> dict[str, float]:
    with psycopg.connect(here.url(), autocommit=True) as connection:
        connection.execute(_AS_A_SCAN)
        meter = Meter(here).start()
        connection.execute(_SCAN)
        return meter.stop()


def _tick(here: World) -> dict[str, float]:
    """Do one run, twice: measured, and counted."""
    with here.replica() as replica:
        replica.next_slot()
        meter = Meter(here).start()
        replica.run(WRAPS.sweeper, WRAPS.settings)
        got = meter.stop()
    return {**got, **_counted(here)}


def _counted(here: World) -> dict[str, float]:
    """Count the transactions of a run, less those of a replica that does nothing."""
    counts = []
    for run in (False, True):
        before = transactions(here)
        with here.replica() as replica:
            replica.next_slot()
            if run:
                replica.run(WRAPS.sweeper, WRAPS.settings)
        counts.append(transactions(here) - before)
    return {"transactions": counts[1] - counts[0]}


def _index(here: World) -> None:
    """Make the indexes that are recommended. Raises NotHere."""
    if not INDEXES.exists():
        raise NotHere(f"no {INDEXES.relative_to(ROOT)}")
    text = re.sub(r"--[^\n]*", "", INDEXES.read_text(encoding="utf-8"))
    for statement in filter(None, (part.strip() for part in text.split(";"))):
        here.sql.execute(statement.encode())
    here.sql.execute("VACUUM ANALYZE secret_wraps")


def _nothing(name: str, what: str, *, indexed: bool, figures: tuple[Figure, ...]) -> Measurement:
    @measurement(name, what, best="one sequential scan, not parallel", figures=figures)
    def opened(size: Size) -> Iterator[Arms]:
        with world(durable=True, settings=QUIET) as here:
            if indexed:
                _index(here)
            fill(here, WRAPS, size.of(1_000_000, quick=200_000, full=5_000_000), doomed=0, width=21)
            yield Arms(lambda: _scan(here), lambda: _tick(here))

    return opened


_NOTHING = (
    _nothing(
        "tick-nothing",
        "a tick that finds nothing among 1,000,000 wraps (5,000,000 with --full), no index of ours",
        indexed=False,
        figures=(
            Figure("backend_cpu", "backend CPU", "s", 1.0, ratio=True, less=True),
            Figure("seconds", "time", "s", ratio=True, less=True),
            Figure("transactions", "transactions"),
        ),
    ),
    _nothing(
        "tick-nothing-indexed",
        "the same with the indexes of deploy/recommended_indexes.sql",
        indexed=True,
        figures=(
            Figure("seconds", "time", "s", 0.05, less=True),
            Figure("backend_cpu", "backend CPU", "s", ratio=True, less=True),
            Figure("transactions", "transactions"),
        ),
    ),
)


@contextmanager
def _held(replica: Replica) -> Iterator[None]:
    """Hold the lock as another replica does."""
    tick = replica.acquire(WRAPS.sweeper, WRAPS.settings)
    assert isinstance(tick, Tick), tick
    try:
        yield
    finally:
        replica.locks.release(tick, done=False)


def _insert(here: World, rows: int) -> None:
    """Have so many rows be due, and none else there."""
    here.sql.execute("TRUNCATE secret_wraps")
    here.sql.execute(WRAPS.fill.format(rows=rows, doomed=2, width=4).encode())


def _one_tick(here: World, rows: int) -> dict[str, float]:
    """Count what one run of so many rows sends, and what it and a losing one cost this process."""
    with network(here.postgres.port) as proxy, network(here.redis.port) as redis_proxy:
        got: dict[str, float] = {}
        with here.replica(proxy.port, redis_proxy.port) as replica:
            for counted in (False, True):  # the first one also loads scripts
                _insert(here, rows)
                replica.next_slot()
                before = proxy.round_trips, redis_proxy.round_trips, _statements(here)
                replica.run(WRAPS.sweeper, WRAPS.settings)
                if counted:
                    got["postgres_round_trips"] = proxy.round_trips - before[0]
                    got["redis_round_trips"] = redis_proxy.round_trips - before[1]
                    got["statements"] = _statements(here) - before[2]
            with _held(replica):
                before = proxy.round_trips, redis_proxy.round_trips, 0
                replica.acquire(WRAPS.sweeper, WRAPS.settings)
                got["losing_round_trips"] = proxy.round_trips - before[0] + redis_proxy.round_trips - before[1]
    here.sql.execute("ALTER SYSTEM SET log_statement = 'none'")
    here.sql.execute("SELECT pg_reload_conf()")
    with here.replica() as replica:
        got["own_cpu"] = _own_cpu(
            lambda: _prepare(here, replica, rows), lambda: replica.run(WRAPS.sweeper, WRAPS.settings)
        )
        with _held(replica):
            got["losing_cpu"] = _own_cpu(lambda: None, lambda: replica.acquire(WRAPS.sweeper, WRAPS.settings))
    here.sql.execute("ALTER SYSTEM RESET log_statement")
    here.sql.execute("SELECT pg_reload_conf()")
    return got


def _prepare(here: World, replica: Replica, rows: int) -> None:
    _insert(here, rows)
    replica.next_slot()


def _own_cpu(prepare: Callable[[], None], work: Callable[[], object]) -> float:
    """Return this process's CPU for doing the work once, milliseconds."""
    spent = 0.0
    for _ in range(_TICKS):
        prepare()
        before = time.process_time()
        work()
        spent += time.process_time() - before
    return spent / _TICKS * 1000


def _statements(here: World) -> int:
    """Return how many statements the measured connections have sent, by the server's log."""
    text = here.postgres.log.read_text(errors="replace")
    return len(re.findall(rf"^{MEASURED} LOG:  (?:statement|execute)", text, re.MULTILINE))


def _plain(here: World, rows: int) -> Mapping[str, float]:
    """Do the same by one statement on a connection that is there."""
    with psycopg.connect(here.postgres.url(), autocommit=True) as connection:
        statement = sql_text.SQL("DELETE FROM secret_wraps WHERE expires_at <= now()")
        cpu = _own_cpu(lambda: _insert(here, rows), lambda: connection.execute(statement))
    return {"own_cpu": cpu, "postgres_round_trips": 1, "statements": 1}


def _round_trips(name: str, what: str, rows: int, most: int) -> Measurement:
    figures = (
        Figure("redis_round_trips", "Redis calls", "", 2, less=True),
        Figure("postgres_round_trips", "PostgreSQL round trips", "", most, less=True),
        Figure("statements", "PostgreSQL statements", less=True),
        Figure("own_cpu", "own CPU", "ms", 2, less=True),
        Figure("losing_round_trips", "calls of a losing tick", "", 1, less=True),
        Figure("losing_cpu", "own CPU of a losing tick", "ms"),
    )

    @measurement(name, what, best="one DELETE on a connection that is there", figures=figures)
    def opened(size: Size) -> Iterator[Arms]:
        del size
        with world(settings={**QUIET, "log_statement": "all", "log_line_prefix": "%a "}) as here:
            yield Arms(lambda: _plain(here, rows), lambda: _one_tick(here, rows))

    return opened


TICKS = (
    *_NOTHING,
    _round_trips("tick-cost", "a tick that finds nothing in a small table", 0, 4),
    _round_trips("tick-cost-batch", "a tick of one batch, 50 rows", 50, 5),
)
