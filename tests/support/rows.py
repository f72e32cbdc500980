"""Rows of the control plane: how a test inserts them, and how it looks at what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from psycopg import Connection
from psycopg.rows import dict_row

FIXED = datetime.fromisoformat("2026-01-01T12:00:00+00:00")


def insert_wrap(sql: Connection[Any], expires_at: datetime, *, consumed: bool = False) -> str:
    """Insert a wrap and return its id."""
    row = sql.execute(
        """
        INSERT INTO secret_wraps (encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash, byte_length,
                                  expires_at, consumed_at, consumed_by_user)
        VALUES ('\\x01', '\\x02', '\\x03', 'local:test', '\\x04', 1, %s, %s, %s) RETURNING id::text
        """,
        [expires_at, FIXED if consumed else None, "canary-user" if consumed else None],
    ).fetchone()
    assert row is not None
    return str(row[0])


def insert_agent(
    sql: Connection[Any], name: str, *, status: str = "active", last_seen_at: datetime | None = None, **columns: Any
) -> str:
    """Insert an agent and return its id."""
    row = sql.execute(
        "INSERT INTO agents (name, secret_hash, status, last_seen_at, cluster_name, scope)"
        " VALUES (%s, '\\x01', %s, %s, %s, %s) RETURNING id::text",
        [name, status, last_seen_at, columns.get("cluster_name"), columns.get("scope", "{}")],
    ).fetchone()
    assert row is not None
    return str(row[0])


def insert_secret(sql: Connection[Any], ref: str, last_seen_at: datetime, *, status: str = "present") -> None:
    """Insert a discovered secret."""
    sql.execute(
        "INSERT INTO secrets (cluster_name, provider_type, secret_ref, status, last_seen_at)"
        " VALUES ('prod', 'vault', %s, %s, %s)",
        [ref, status, last_seen_at],
    )


def insert_job(  # noqa: PLR0913 - a row's columns
    sql: Connection[Any],
    *,
    job_type: str = "sync",
    status: str = "claimed",
    claim_expires_at: datetime | None = None,
    payload: str = "{}",
    agent_scope: str = "{}",
    request_id: str | None = None,
) -> str:
    """Insert a job and return its id."""
    row = sql.execute(
        "INSERT INTO sync_jobs (job_type, status, correlation_id, claim_expires_at, payload, agent_scope, request_id)"
        " VALUES (%s, %s, gen_random_uuid(), %s, %s, %s, %s) RETURNING id::text",
        [job_type, status, claim_expires_at, payload, agent_scope, request_id],
    ).fetchone()
    assert row is not None
    return str(row[0])


def rows(sql: Connection[Any], query: str) -> list[dict[str, Any]]:
    """Return a query's rows as dictionaries."""
    with sql.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query.encode()).fetchall()


def column(sql: Connection[Any], query: str) -> list[Any]:
    """Return the first column of a query's rows."""
    return [row[0] for row in sql.execute(query.encode())]


def insert_environment(sql: Connection[Any]) -> tuple[str, str]:
    """Insert a project with an environment and return their ids."""
    row = sql.execute(
        """
        WITH project AS (INSERT INTO projects (name) VALUES (gen_random_uuid()::text) RETURNING id)
        INSERT INTO environments (project_id, name, type, kind)
        SELECT id, 'prod', 'prod', 'prod' FROM project RETURNING project_id::text, id::text
        """
    ).fetchone()
    assert row is not None
    return str(row[0]), str(row[1])


def insert_reveal_session(
    sql: Connection[Any], expires_at: datetime, wraps: Sequence[str], *, expired_at: datetime | None = None
) -> str:
    """Insert a reveal session of these wraps and return its id."""
    project, environment = insert_environment(sql)
    row = sql.execute(
        "INSERT INTO reveal_sessions (user_id, project_id, environment_id, ttl_seconds, expires_at, wrap_ids,"
        " expired_at, expired_reason) VALUES ('canary-user', %s, %s, 60, %s, %s::uuid[], %s, %s) RETURNING id::text",
        [project, environment, expires_at, list(wraps), expired_at, "user_hide" if expired_at else None],
    ).fetchone()
    assert row is not None
    return str(row[0])


def insert_connection(sql: Connection[Any], name: str, **columns: Any) -> str:
    """Insert a provider connection that is discovered every 5 minutes, and return its id."""
    row = sql.execute(
        """
        INSERT INTO provider_connections (name, type, auth_method, scope, status, cluster_name, discover_enabled,
               discover_interval_seconds, last_discover_at, last_discover_status, last_discover_started_at)
        VALUES (%s, 'vault', 'kubernetes', '{"kvPrefix": "apps"}', %s, %s, %s, %s, %s, %s, %s) RETURNING id::text
        """,
        [
            name,
            columns.get("status", "active"),
            columns.get("cluster", "prod-1"),
            columns.get("enabled", True),
            columns.get("interval", 300),
            columns.get("last_at"),
            columns.get("last_status"),
            columns.get("started_at"),
        ],
    ).fetchone()
    assert row is not None
    return str(row[0])


def insert_cross_team_request(
    sql: Connection[Any], fill_expires_at: datetime | None, *, status: str = "pending_values"
) -> str:
    """Insert a request to another team and return its id."""
    project, environment = insert_environment(sql)
    connection = insert_connection(sql, f"destination-{environment}", enabled=False)
    row = sql.execute(
        """
        WITH team AS (INSERT INTO teams (name) VALUES (gen_random_uuid()::text) RETURNING id)
        INSERT INTO access_requests (requester_id, type, justification, status, target_team_id, target_project_id,
               target_environment_id, destination_provider_connection_id, destination_secret_ref, destination_keys,
               snap_requires_security_approval, snap_min_approvers, fill_expires_at)
        SELECT 'canary-user', 'cross_team', 'test', %s, team.id, %s, %s, %s, 'apps/x', '[]', false, 1, %s FROM team
        RETURNING id::text
        """,
        [status, project, environment, connection, fill_expires_at],
    ).fetchone()
    assert row is not None
    return str(row[0])


def insert_session(sql: Connection[Any], expires_at: datetime) -> str:
    """Insert a login session and return its id."""
    row = sql.execute(
        "INSERT INTO sessions (user_id, token_hash, expires_at, idle_expires_at)"
        " VALUES (gen_random_uuid(), uuid_send(gen_random_uuid()), %s, %s) RETURNING id::text",
        [expires_at, expires_at],
    ).fetchone()
    assert row is not None
    return str(row[0])
