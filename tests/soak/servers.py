"""What a deployment takes of its servers: connections, tables, keys; and how late its sweeps are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import redis as redis_py
from psycopg import Connection
from psycopg.rows import dict_row

from tests.soak.deployment import ROLE
from tests.soak.processes import Value

#: Of the api's tables those that sweeps delete from: they grow when sweeps fall behind.
SWEPT = ("secret_wraps", "sessions")
MEBIBYTE = 2**20
QUEUES = ("sweeps", "sinks")

CONNECTIONS = """
SELECT count(*) AS connections,
       count(*) FILTER (WHERE state LIKE 'idle in transaction%%') AS idle_in_transaction,
       coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float AS oldest_transaction
  FROM pg_stat_activity WHERE usename = %s
"""
# Dead rows are a saw, whose teeth may be longer than a soak: what counts is those that autovacuum is late for.
TABLES = """
SELECT relname AS name, n_live_tup AS live, n_dead_tup AS dead, pg_total_relation_size(relid) AS bytes,
       greatest(n_dead_tup - 50 - 0.2 * n_live_tup, 0)::float AS unvacuumed
  FROM pg_stat_user_tables
 WHERE schemaname = 'secrets_bridge_worker' OR relname = ANY (%s) ORDER BY relname
"""
LATENESS = """
SELECT count(*) AS runs,
       coalesce(percentile_cont(0.5) WITHIN GROUP (ORDER BY late), 0) AS median,
       coalesce(max(late), 0) AS worst
  FROM (SELECT greatest(extract(epoch FROM started_at - slot), 0)::float AS late
          FROM secrets_bridge_worker.sweep_run
         WHERE started_at > clock_timestamp() - %s * interval '1 s' AND token IS NOT NULL) AS runs
"""


def look(sql: Connection[Any], client: redis_py.Redis, seconds: float) -> Iterator[tuple[str, Value]]:
    """Yield what both servers say; lateness is that of the runs of the last `seconds`."""
    yield from _postgres(sql, seconds)
    yield from _redis(client)


def _postgres(sql: Connection[Any], seconds: float) -> Iterator[tuple[str, Value]]:
    with sql.cursor(row_factory=dict_row) as cursor:
        (activity,) = cursor.execute(CONNECTIONS, [ROLE]).fetchall()
        yield "PostgreSQL: connections", Value(activity["connections"], "number")
        yield "PostgreSQL: idle in transaction", Value(activity["idle_in_transaction"], "number")
        yield "PostgreSQL: oldest transaction", Value(activity["oldest_transaction"], "s")
        for table in cursor.execute(TABLES, [list(SWEPT)]).fetchall():
            yield f"table {table['name']}: live rows", Value(table["live"], "rows")
            yield f"table {table['name']}: dead rows", Value(table["dead"], "rows", judged=False)
            yield f"table {table['name']}: dead rows not vacuumed", Value(table["unvacuumed"], "rows")
            yield f"table {table['name']}: size", Value(table["bytes"] / MEBIBYTE, "MiB")
        (late,) = cursor.execute(LATENESS, [seconds]).fetchall()
        yield "sweeps: runs", Value(late["runs"], "number", judged=False)
        yield "sweeps: median lateness", Value(late["median"], "s")
        yield "sweeps: worst lateness", Value(late["worst"], "s")


def _redis(client: redis_py.Redis) -> Iterator[tuple[str, Value]]:
    memory: Any = client.info("memory")
    clients: Any = client.info("clients")
    keys: Any = client.dbsize()
    yield "Redis: keys", Value(keys, "number")
    yield "Redis: memory", Value(memory["used_memory"] / MEBIBYTE, "MiB")
    yield "Redis: clients", Value(clients["connected_clients"], "number")
    for queue in QUEUES:
        waiting: Any = client.llen(f"dramatiq:{queue}")
        yield f"Redis: queue {queue}", Value(waiting, "number")
