"""The api's writes against the oldest sweeps: whoever comes first wins, and nobody waits or is undone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from actors.agents_stale import AgentsStale, agents_stale
from actors.secrets_stale import SecretsStale, secrets_stale
from actors.wraps_expired import WrapsExpired, wraps_expired
from tests.support.replica import Replica
from tests.support.rows import FIXED, column, insert_agent, insert_secret, insert_wrap

HEARTBEAT = (
    "UPDATE agents SET last_seen_at = now(), status = CASE WHEN status IN ('enrolled', 'stale') THEN 'active'"
    " ELSE status END WHERE status <> 'revoked'"
)
SIGHTING = """
INSERT INTO secrets (cluster_name, provider_type, secret_ref, last_seen_at) VALUES ('prod', 'vault', 'a', now())
    ON CONFLICT (cluster_name, provider_type, secret_ref)
    DO UPDATE SET last_seen_at = excluded.last_seen_at, status = 'present'
"""
CONSUME = "UPDATE secret_wraps SET consumed_at = now(), consumed_by_user = 'somebody' WHERE consumed_at IS NULL"


@pytest.fixture(autouse=True)
def _due(sql: Connection[Any]) -> None:
    insert_agent(sql, "a", last_seen_at=FIXED)
    insert_secret(sql, "a", FIXED)
    insert_wrap(sql, FIXED)


def assert_wins(
    owner_database: str, replica: Replica, sweep: Callable[[], int], state: Callable[[], str], write: str
) -> None:
    """Assert that a sign of life is neither waited for nor undone, and undoes the sweep."""
    alive = state()
    with psycopg.connect(owner_database) as api:
        api.execute(write.encode())
        assert sweep() == 0
        api.rollback()
    replica.next_slot()
    assert sweep() == 1
    assert state() != alive
    with psycopg.connect(owner_database) as api:
        api.execute(write.encode())
    replica.next_slot()
    assert sweep() == 0
    assert state() == alive


def test_a_heartbeat_wins_before_and_after_the_sweep(
    owner_database: str, replica: Replica, sql: Connection[Any]
) -> None:
    def sweep() -> int:
        return replica.run(agents_stale, AgentsStale()).changed

    assert_wins(owner_database, replica, sweep, lambda: str(column(sql, "SELECT status FROM agents")), HEARTBEAT)


def test_a_sighting_wins_before_and_after_the_sweep(
    owner_database: str, replica: Replica, sql: Connection[Any]
) -> None:
    def sweep() -> int:
        return replica.run(secrets_stale, SecretsStale()).changed

    assert_wins(owner_database, replica, sweep, lambda: str(column(sql, "SELECT status FROM secrets")), SIGHTING)


def test_a_wrap_that_is_being_opened_is_deleted_afterwards(
    owner_database: str, replica: Replica, sql: Connection[Any]
) -> None:
    with psycopg.connect(owner_database) as api:
        assert api.execute(CONSUME).rowcount == 1
        assert replica.run(wraps_expired, WrapsExpired()).changed == 0
        api.commit()
    replica.next_slot()
    assert replica.run(wraps_expired, WrapsExpired()).changed == 1
    assert sql.execute(CONSUME).rowcount == 0
