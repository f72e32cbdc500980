"""A client that falls silent in the middle of a pipeline: its transaction ends, and with it its locks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest

from actors.wraps_expired import WrapsExpired, wraps_expired
from app.storage import pipeline
from app.sweeping.ledger import claims, transactions
from tests.support.rows import column, insert_wrap
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from typing import Any

    from psycopg import Connection

    from tests.support.replica import Replica

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
LIMITS = transactions.Limits.below(SECOND)


def test_what_was_claimed_in_a_pipeline_that_never_ends_is_free_again(database: str, sql: Connection[Any]) -> None:
    silent = psycopg.connect(database, autocommit=True)
    # As psycopg sends it: each statement as soon as it is there, and the end of the pipeline behind them.
    silent.pipeline().__enter__()
    silent.execute("BEGIN")
    transactions.begin(silent, "agents", "agents", LIMITS)
    claims.claim(silent, "agents-stale", None, claims.Lengths(SECOND, lease=SECOND))
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_xid IS NOT NULL"
    eventually(lambda: column(sql, sessions) == [1])
    eventually(lambda: column(sql, sessions) == [0])
    silent.pgconn.finish()


def test_a_server_that_cannot_end_it_is_asked_one_thing_after_the_other(
    replica: Replica, sql: Connection[Any], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL 16 and older; and a statement that fails then fails as it is sent."""
    monkeypatch.setattr(pipeline, "BOUNDS_TRANSACTIONS", 10**9)
    held = insert_wrap(sql, LONG_AGO)
    for _ in range(20):
        insert_wrap(sql, LONG_AGO)
    with psycopg.connect(database) as other:
        other.execute("SELECT FROM secret_wraps WHERE id = %s FOR UPDATE", [held])
        sweep = replica.run(wraps_expired, WrapsExpired())
    assert (sweep.changed, sweep.counts["skipped_locked"]) == (20, 1)
