"""What these tests look at, and what they put in the way of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg import Connection

from app.sweeping.ledger import claims, runs, transactions
from app.sweeping.scans.batch_size import BatchSizer
from app.sweeping.scans.page_scan import PageScan
from app.sweeping.schedule import microseconds, slot_at
from app.sweeping.strategy import Passing, Run, Step
from app.sweeping.sweeper import Sweeper
from tests.support.rows import column
from tests.support.slots import steady
from tests.support.waiting import eventually

RUNS = "SELECT * FROM secrets_bridge_worker.sweep_run ORDER BY id"
STATE = "SELECT * FROM secrets_bridge_worker.sweep_state"
SUMS = """
SELECT count(*) FILTER (WHERE outcome <> 'interrupted') AS runs,
       count(DISTINCT slot) FILTER (WHERE outcome <> 'interrupted') AS own, count(DISTINCT slot) AS slots,
       sum(covered) AS covered, extract(epoch FROM max(slot) - min(slot))::int + 1 AS span
  FROM secrets_bridge_worker.sweep_run WHERE outcome <> 'failure'
"""
SECOND, MINUTE, STEADY = timedelta(seconds=1), timedelta(minutes=1), steady()
LENGTHS = claims.Lengths(SECOND, lease=MINUTE)
PAST = datetime(2026, 1, 1, tzinfo=UTC)


def expired(sql: Connection[Any], count: int, *, consumed: bool = False) -> None:
    sql.execute(
        "INSERT INTO secret_wraps (encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash, byte_length,"
        " expires_at, consumed_at, consumed_by_user) SELECT '\\x01', '\\x02', '\\x03', 'k', '\\x04', 1, '2026-01-01',"
        " CASE WHEN %(consumed)s THEN now() END, CASE WHEN %(consumed)s THEN 'u' END"
        " FROM generate_series(1, %(count)s)",
        {"count": count, "consumed": consumed},
    )


def now_slot(sql: Connection[Any], interval: timedelta) -> int:
    """Return the slot of a cadence that is current by the database's clock."""
    row = sql.execute("SELECT now()").fetchone()
    assert row is not None
    return slot_at(microseconds(row[0]), interval)


def await_next_second(sql: Connection[Any]) -> None:
    """Wait until the slot of a second is newer than the newest that was claimed."""
    (claimed,) = column(sql, "SELECT last_slot FROM secrets_bridge_worker.sweep_state")
    eventually(lambda: now_slot(sql, SECOND) > microseconds(claimed))


class Observed(PageScan):
    """A page scan with something that happens before each of its steps."""

    def __init__(self, inner: PageScan, before: Callable[[Run, BatchSizer], object]) -> None:
        super().__init__(inner.sql, inner.older_than)
        self._before = before

    def ask(self, run: Run) -> None:
        """Nothing yet: what comes before a step comes before its statement."""

    def step(self, run: Run, *, over: bool) -> Step:
        self._before(run, self.sizer)
        super().ask(run)
        return super().step(run, over=over)


def wrapped(sweeper: Sweeper[Any], before: Callable[[Run, BatchSizer], object]) -> Sweeper[Any]:
    """Return the sweeper with something that happens before each of its steps."""

    def strategy(settings: Any) -> PageScan:
        inner = sweeper.strategy(settings)
        inner = inner.strategy if isinstance(inner, Passing) else inner
        assert isinstance(inner, PageScan)
        return Observed(inner, before)

    return replace(sweeper, strategy=strategy)


def claimed(connection: Connection[Any]) -> runs.Claimed:
    """Claim the current slot of agents-stale, and open its run."""
    name, limits = "agents-stale", transactions.Limits.below(MINUTE)
    with connection.transaction():
        now = transactions.begun(transactions.begin(connection, "agents", "agents", limits)).now
        claim = claims.claimed(claims.claim(connection, name, None, LENGTHS), name, now, None, LENGTHS)
        assert claim is not None
        opening = runs.open_run(connection, name, claim, worker="x", cutoff=now)
        return runs.opened(opening, name, claim, began=now, cutoff=now)
