"""Rows of the control plane: how a test inserts them, and how it looks at what became of them."""

from __future__ import annotations

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
