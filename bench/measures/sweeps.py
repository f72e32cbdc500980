"""Sweeps of a backlog: locally with a client in the way, over a network, beside rows that others hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import psycopg

from actors.agents_stale import AgentsStale, agents_stale
from actors.jobs_recovery import JobsRecovery, jobs_recovery
from actors.secrets_stale import SecretsStale, secrets_stale
from actors.wraps_expired import WrapsExpired, wraps_expired
from app.sweeping.sweeper import Sweeper, SweeperSettings
from bench.measurement import Arms, Figure, Measurement, Size, measurement
from bench.meters import Client, Meter, Network, network, one
from bench.world import QUIET, World, world

RATE = "rate"
#: A third is consumed. A row has some 300 bytes with a `width` of 4, 590 with one of 21.
_WRAPS = """
INSERT INTO secret_wraps (encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash, byte_length,
                          expires_at, consumed_at, consumed_by_user)
SELECT decode(repeat(md5(n::text), {width}), 'hex'), decode(left(md5(n::text), 24), 'hex'),
       decode(repeat(md5(n::text), 4), 'hex'), 'local:bench', decode(repeat(md5(n::text), 2), 'hex'), 64,
       now() + CASE WHEN n % 2 < {doomed} THEN interval '-1 hour' ELSE interval '7 days' END,
       CASE WHEN n % 3 = 0 THEN now() - interval '2 hours' END, CASE WHEN n % 3 = 0 THEN 'someone' END
  FROM generate_series(1, {rows}) AS n
"""
_SECRETS = """
INSERT INTO secrets (cluster_name, provider_type, secret_ref, last_seen_at)
SELECT 'eu-' || n % 3, 'vault', 'apps/service-' || n, now() - n % 2 * interval '48 hours'
  FROM generate_series(1, {rows}) AS n
"""
_AGENTS = """
INSERT INTO agents (name, secret_hash, status, last_seen_at, cluster_name)
SELECT 'agent-' || n, decode(md5(n::text), 'hex'), 'active', now() - n % 2 * interval '1 hour', 'eu-' || n % 3
  FROM generate_series(1, {rows}) AS n
"""
_JOBS = """
INSERT INTO sync_jobs (job_type, status, correlation_id, claim_expires_at)
SELECT (ARRAY['sync', 'verify', 'patch', 'read'])[1 + n % 4], CASE n % 2 WHEN 1 THEN 'claimed' ELSE 'succeeded' END,
       gen_random_uuid(), now() - interval '1 minute'
  FROM generate_series(1, {rows}) AS n
"""


class Backlog(NamedTuple):
    """A table, half of whose rows are due, our sweeper of it, and the one statement that does the same."""

    sweeper: Sweeper[Any]
    settings: SweeperSettings
    table: str
    fill: str
    due: str
    best: str
    #: For how long they have been due when the fill is over.
    overdue: str


WRAPS = Backlog(
    wraps_expired, WrapsExpired(), "secret_wraps", _WRAPS, "expires_at <= now()", "DELETE FROM secret_wraps", "1 hour"
)
SECRETS = Backlog(
    secrets_stale,
    SecretsStale(),
    "secrets",
    _SECRETS,
    "status = 'present' AND last_seen_at < now() - interval '24 hours'",
    "UPDATE secrets SET status = 'missing'",
    "24 hours",
)
AGENTS = Backlog(
    agents_stale,
    AgentsStale(),
    "agents",
    _AGENTS,
    "status = 'active' AND last_seen_at < now() - interval '5 minutes'",
    "UPDATE agents SET status = 'stale'",
    "55 minutes",
)
JOBS = Backlog(
    jobs_recovery,
    JobsRecovery(),
    "sync_jobs",
    _JOBS,
    "status = 'claimed' AND claim_expires_at < now()",
    "UPDATE sync_jobs SET status = 'expired'",
    "1 minute",
)


def fill(here: World, backlog: Backlog, rows: int, *, doomed: int = 1, width: int = 4) -> None:
    """Replace a table's rows by so many new ones; of wraps none is due when `doomed` is 0, all are when it is 2."""
    empty(here, backlog)
    insert(here, backlog, rows, doomed=doomed, width=width)


def empty(here: World, *backlogs: Backlog) -> None:
    """Empty tables, and those that refer to them."""
    here.sql.execute(f"TRUNCATE {', '.join(backlog.table for backlog in backlogs)} CASCADE".encode())


def insert(here: World, backlog: Backlog, rows: int, *, doomed: int = 1, width: int = 4) -> None:
    """Insert rows and leave the table as it would be after a while."""
    here.sql.execute(backlog.fill.format(rows=rows, doomed=doomed, width=width).encode())
    here.sql.execute(f"VACUUM ANALYZE {backlog.table}".encode())
    here.sql.execute("CHECKPOINT")


def _due(here: World, backlog: Backlog) -> int:
    count: int = one(here.sql, f"SELECT count(*) FROM {backlog.table} WHERE {backlog.due}")
    return count


def sweep(here: World, backlog: Backlog, *, proxy: Network | None = None, client: bool = False) -> dict[str, float]:
    """Do one run as a worker does, through a proxy if one is given; return its figures."""
    due = _due(here, backlog)
    with here.replica(proxy.port if proxy else None) as replica:
        replica.next_slot()
        durations: list[float] = []
        replica.runner.on_batch = durations.append
        meter = Meter(here, proxy)
        got = _measure(here, backlog, meter, lambda: replica.run(backlog.sweeper, backlog.settings), client=client)
    left = _due(here, backlog)
    return {
        **_per_row(got, due - left),
        "transactions": len(durations),
        "longest": max(durations) * 1000,
        "left": left,
    }


def one_statement(
    here: World, backlog: Backlog, *, statement: str = "", proxy: Network | None = None, client: bool = False
) -> dict[str, float]:
    """Do the same by one plain statement; return its figures."""
    due = _due(here, backlog)
    statement = statement or f"{backlog.best} WHERE {backlog.due}"
    with psycopg.connect(here.url(proxy.port if proxy else None), autocommit=True) as connection:
        connection.execute("SELECT 1")
        got = _measure(here, backlog, Meter(here, proxy), lambda: connection.execute(statement.encode()), client=client)
    left = _due(here, backlog)
    return {**_per_row(got, due - left), "transactions": 1, "longest": got["seconds"] * 1000, "left": left}


def _measure(
    here: World, backlog: Backlog, meter: Meter, work: Callable[[], object], *, client: bool
) -> dict[str, float]:
    beside = Client(here, backlog.table, backlog.due) if client else None
    if beside:
        beside.go()
    meter.start()
    work()
    got = meter.stop()
    return {**got, **(beside.end() if beside else {})}


def _per_row(got: Mapping[str, float], rows: int) -> dict[str, float]:
    return {
        **got,
        RATE: rows / got["seconds"],
        "cpu_row": got["backend_cpu"] / max(rows, 1) * 1e6,
        "wal_row": got["wal"] / max(rows, 1),
    }


def _local(name: str, what: str, backlog: Backlog, rows: tuple[int, int], figures: tuple[Figure, ...]) -> Measurement:
    usual, quick = rows

    @measurement(name, what, best=f"one {backlog.best.split()[0]}, with the same client", figures=figures)
    def opened(size: Size) -> Iterator[Arms]:
        with world(durable=True, settings=QUIET) as here:

            def baseline() -> Mapping[str, float]:
                fill(here, backlog, size.of(usual, quick=quick))
                return one_statement(here, backlog, client=True)

            def ours() -> Mapping[str, float]:
                fill(here, backlog, size.of(usual, quick=quick))
                return sweep(here, backlog, client=True)

            yield Arms(baseline, ours)

    return opened


_FLIP = (
    Figure(RATE, "rows a second", "rows/s", 0.95, ratio=True),
    Figure("client_worst", "the client's worst wait", "ms", 25, less=True),
    Figure("cpu_row", "backend CPU a row", "µs", ratio=True, less=True),
    Figure("wal_row", "WAL a row", "B", ratio=True, less=True),
    Figure("longest", "longest transaction", "ms", less=True),
    Figure("transactions", "transactions"),
)


_LOCAL = (
    _local(
        "sweep-local",
        "sweep of 200,000 wraps, half expired, while a client updates doomed rows",
        WRAPS,
        (200_000, 60_000),
        (
            Figure(RATE, "rows a second", "rows/s", 0.9, ratio=True),
            Figure("cpu_row", "backend CPU a row", "µs", 1.2, ratio=True, less=True),
            Figure("wal_row", "WAL a row", "B", 1.02, ratio=True, less=True),
            Figure("client_worst", "the client's worst wait", "ms", 15, less=True),
            Figure("longest", "longest transaction", "ms", 30, less=True),
            Figure("transactions", "transactions"),
        ),
    ),
    _local(
        "flip-secrets",
        "200,000 secrets, half not seen for long, while a client updates such rows",
        SECRETS,
        (200_000, 40_000),
        _FLIP,
    ),
    _local(
        "flip-agents",
        "100,000 agents, half silent, while a client updates such rows",
        AGENTS,
        (100_000, 30_000),
        _FLIP,
    ),
    _local(
        "flip-jobs",
        "200,000 jobs, half with claims that ran out, while a client updates such rows",
        JOBS,
        (200_000, 40_000),
        _FLIP,
    ),
)


def _network(milliseconds: int) -> Measurement:
    @measurement(
        f"sweep-network-{milliseconds}ms",
        f"sweep of 60,000 wraps, half expired, over a network that adds {milliseconds} ms a round trip",
        best="one DELETE over the same network",
        figures=(
            Figure(RATE, "rows a second", "rows/s", 0.5, ratio=True),
            Figure("longest", "longest transaction", "ms", 60, less=True),
            Figure("transactions", "transactions"),
            Figure("round_trips", "round trips"),
            Figure("round_trip", "one round trip, measured", "ms"),
        ),
    )
    def opened(size: Size) -> Iterator[Arms]:
        with world(durable=True, settings=QUIET) as here, network(here.postgres.port, milliseconds) as proxy:

            def arm(work: Callable[[], dict[str, float]]) -> Mapping[str, float]:
                fill(here, WRAPS, size.of(60_000, quick=20_000))
                return {**work(), "round_trip": _round_trip(here, proxy.port)}

            yield Arms(
                lambda: arm(lambda: one_statement(here, WRAPS, proxy=proxy)),
                lambda: arm(lambda: sweep(here, WRAPS, proxy=proxy)),
            )

    return opened


def _round_trip(here: World, port: int) -> float:
    with psycopg.connect(here.url(port), autocommit=True) as connection:
        connection.execute("SELECT 1")
        meter = Meter(here).start()
        for _ in range(20):
            connection.execute("SELECT 1")
        return meter.stop()["seconds"] / 20 * 1000


_SKIP_LOCKED = """
DELETE FROM secret_wraps WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM secret_wraps WHERE expires_at <= now() FOR UPDATE SKIP LOCKED))
"""
_HOLD = """
SELECT id FROM secret_wraps WHERE id IN (
    SELECT id FROM secret_wraps WHERE expires_at <= now() ORDER BY md5(id::text) LIMIT 100) FOR UPDATE
"""


@measurement(
    "sweep-locked",
    "sweep of 200,000 wraps, half expired, 100 of those held by another session",
    best="one DELETE of what is locked first, with SKIP LOCKED",
    figures=(
        Figure(RATE, "rows a second", "rows/s", ratio=True),
        Figure("longest", "longest transaction", "ms", 60, less=True),
        Figure("left", "rows left: those that are held", "rows", 100, less=True),
    ),
)
def _locked(size: Size) -> Iterator[Arms]:
    with world(durable=True, settings=QUIET) as here:

        def arm(work: Callable[[], dict[str, float]]) -> Mapping[str, float]:
            fill(here, WRAPS, size.of(200_000, quick=60_000))
            with psycopg.connect(here.postgres.url()) as other, nullcontext(other.execute(_HOLD)):
                return work()

        yield Arms(
            lambda: arm(lambda: one_statement(here, WRAPS, statement=_SKIP_LOCKED)),
            lambda: arm(lambda: sweep(here, WRAPS)),
        )


_PARTITION = """
ALTER TABLE secret_wraps RENAME TO whole;
CREATE TABLE secret_wraps (LIKE whole INCLUDING DEFAULTS INCLUDING CONSTRAINTS) PARTITION BY HASH (id);
DROP TABLE whole CASCADE;
ALTER TABLE secret_wraps ADD PRIMARY KEY (id);
CREATE INDEX ON secret_wraps (expires_at) WHERE consumed_at IS NULL
"""
_PARTITIONS = 8


@measurement(
    "sweep-partitioned",
    f"sweep of 200,000 wraps in {_PARTITIONS} partitions, half expired, while a client updates doomed rows",
    best="one DELETE, with the same client",
    figures=(
        Figure(RATE, "rows a second", "rows/s", ratio=True),
        Figure("cpu_row", "backend CPU a row", "µs", ratio=True, less=True),
        Figure("wal_row", "WAL a row", "B", ratio=True, less=True),
        Figure("client_worst", "the client's worst wait", "ms"),
        Figure("longest", "longest transaction", "ms"),
        Figure("transactions", "transactions"),
    ),
)
def _partitioned(size: Size) -> Iterator[Arms]:
    with world(durable=True, settings=QUIET) as here:
        here.sql.execute(_PARTITION)
        for number in range(_PARTITIONS):
            values = f"FOR VALUES WITH (MODULUS {_PARTITIONS}, REMAINDER {number})"
            here.sql.execute(f"CREATE TABLE wraps_{number} PARTITION OF secret_wraps {values}".encode())

        def arm(work: Callable[[], dict[str, float]]) -> Mapping[str, float]:
            fill(here, WRAPS, size.of(200_000, quick=60_000))
            return work()

        yield Arms(
            lambda: arm(lambda: one_statement(here, WRAPS, client=True)),
            lambda: arm(lambda: sweep(here, WRAPS, client=True)),
        )


SWEEPS = (*(_network(milliseconds) for milliseconds in (0, 1, 5)), *_LOCAL, _locked, _partitioned)
