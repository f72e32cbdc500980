"""Our schema is brought up from any older version, and the printed SQL does the same."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import Connection

from app.core.errors import BootError
from app.storage import migrations
from tests.support.rows import column

TABLES = """
SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = to_regnamespace('secrets_bridge_worker') ORDER BY 1
"""


@pytest.fixture
def old(sql: Connection[Any]) -> Connection[Any]:
    """Return a database with the first version of our schema, and a row in it."""
    sql.execute("DROP SCHEMA secrets_bridge_worker CASCADE")
    sql.execute(migrations._BOOTSTRAP.encode())
    sql.execute(migrations._VERSIONS[0].encode())
    sql.execute("INSERT INTO secrets_bridge_worker.schema_version (version) VALUES (1)")
    sql.execute("INSERT INTO secrets_bridge_worker.sweep_state VALUES ('x', now(), now(), 7)")
    return sql


@pytest.mark.parametrize("way", ["migrate", "script"])
def test_an_older_schema_is_upgraded_and_keeps_its_rows(old: Connection[Any], way: str) -> None:
    assert migrations.installed(old) == 1
    if way == "migrate":
        assert migrations.migrate(old) == migrations.VERSION
    else:
        old.execute(migrations.script(1).encode())  # which grants to the role that the suite has
    assert migrations.installed(old) == migrations.VERSION
    assert column(old, "SELECT token FROM secrets_bridge_worker.sweep_state") == [7]
    assert column(old, TABLES) == [
        "gitops_rest",
        "heartbeat",
        "notification_delivery",
        "notification_event",
        "notification_hold",
        "notification_target",
        "process",
        "schema_version",
        "sweep_obstacle",
        "sweep_run",
        "sweep_state",
        "sweeper_pause",
    ]


def test_an_upgrade_that_waits_for_a_table_keeps_nobody_else_waiting(
    owner_database: str, old: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL queues everybody behind a waiting ALTER TABLE, readers too."""
    with psycopg.connect(owner_database) as reader, psycopg.connect(owner_database, autocommit=True) as other:
        reader.execute("SELECT FROM secrets_bridge_worker.sweep_state")
        pauses: list[float] = []

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            other.execute("SET lock_timeout = '1s'")
            other.execute("SELECT FROM secrets_bridge_worker.sweep_state")
            if len(pauses) == 2:
                reader.rollback()

        monkeypatch.setattr("app.storage.migrations.time.sleep", pause)
        assert migrations.migrate(old) == migrations.VERSION
    assert len(pauses) == 2


def test_an_upgrade_that_never_gets_its_table_says_so(
    owner_database: str, old: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.storage.migrations.PAUSE_SECONDS", 0)
    monkeypatch.setattr("app.storage.migrations.TRIES", 2)
    with psycopg.connect(owner_database) as reader:
        reader.execute("SELECT FROM secrets_bridge_worker.sweep_state")
        with pytest.raises(BootError, match=r"at version 1 and cannot be brought to .*LockNotAvailable"):
            migrations.migrate(old)
    assert migrations.installed(old) == 1


@pytest.mark.parametrize(
    "row",
    [
        "'pending', NULL, now()",
        "'delivered', NULL, NULL",
        "'sending', NULL, NULL",
        "'pending', now(), NULL",
        "'lost', NULL, now()",
    ],
)
def test_a_delivery_cannot_be_in_between(sql: Connection[Any], row: str) -> None:
    sql.execute(
        "INSERT INTO secrets_bridge_worker.notification_event (kind, component, severity, title, detail, metadata)"
        " VALUES ('swept', 'x', 'info', 't', '', '{}')"
    )
    with pytest.raises(psycopg.errors.CheckViolation):
        sql.execute(
            f"""
            INSERT INTO secrets_bridge_worker.notification_delivery (event_id, target, state, lease_until, finished_at)
            SELECT id, 'webhook', {row} FROM secrets_bridge_worker.notification_event
            """.encode()
        )
