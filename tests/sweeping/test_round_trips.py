"""How often a sweep waits for PostgreSQL: counted in the protocol itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from actors.agents_stale import AgentsStale, agents_stale
from actors.wraps_expired import WrapsExpired, wraps_expired
from tests.support.rows import column, insert_agent

if TYPE_CHECKING:
    from psycopg import Connection

    from tests.support.replica import Replica

WRAPS = """
INSERT INTO secret_wraps (encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash, byte_length,
                          expires_at)
SELECT '\\x01', '\\x02', '\\x03', 'local:test', '\\x04', 1, '2026-01-01' FROM generate_series(1, {rows})
"""


@contextmanager
def traced(replica: Replica, path: Path) -> Iterator[list[int]]:
    """Yield a list that has, in the end, how often the runs have asked PostgreSQL something and waited."""
    found: list[int] = []
    pool = replica.runner.pool
    with path.open("wb") as file:
        with pool.connection() as connection:
            connection.pgconn.trace(file.fileno())
        yield found
        with pool.connection() as again:
            assert again is connection  # the pool lends what was given back last
            again.pgconn.untrace()
    ways = [line.split("\t")[1] for line in path.read_text().splitlines() if line.count("\t") > 1]
    found.append(sum(before == "F" and after == "B" for before, after in pairwise(ways)))


def batches(sql: Connection[Any]) -> int:
    """Return how many transactions the last run took."""
    return int(column(sql, "SELECT batches FROM secrets_bridge_worker.sweep_run ORDER BY id DESC")[0])


def test_a_run_that_finds_nothing_waits_three_times(replica: Replica, sql: Connection[Any], tmp_path: Path) -> None:
    insert_agent(sql, "alive", last_seen_at=datetime.now(UTC))
    replica.run(agents_stale, AgentsStale())
    sql.execute("DELETE FROM secrets_bridge_worker.sweep_run")
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = 'epoch'")
    with traced(replica, tmp_path / "trace") as waits:
        assert replica.run(agents_stale, AgentsStale()).changed == 0
    assert batches(sql) == 1
    assert waits == [3]


@pytest.mark.parametrize("rows", [1_000, 30_000])
def test_a_batch_more_is_two_waits_more(replica: Replica, sql: Connection[Any], tmp_path: Path, rows: int) -> None:
    sql.execute(WRAPS.format(rows=rows).encode())
    with traced(replica, tmp_path / "trace") as waits:
        assert replica.run(wraps_expired, WrapsExpired()).changed == rows
    told = 2  # the event and its deliveries, at the end
    assert waits[0] <= 3 + 2 * (batches(sql) - 1) + told
