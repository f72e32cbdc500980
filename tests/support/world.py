"""The world around a worker, as far as a test needs it: rows of the control plane, and a replica without Dramatiq."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import redis
from psycopg import Connection
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from app.core.errors import SweepFailed
from app.core.events import Event
from app.notify.outbox import Outbox, read_notification
from app.notify.routing import Router, targets
from app.notify.sink import Answer
from app.sweeping.lock import Lease, Locks, Refusal
from app.sweeping.runner import Runner
from app.sweeping.sweeper import Sweep, Sweeper, SweeperSettings
from sinks.noop import Noop, noop

EVENTS = "SELECT *, id AS event_id FROM secrets_bridge_worker.notification_event ORDER BY created_at"
FIXED = datetime.fromisoformat("2026-01-01T12:00:00+00:00")


class Replica:
    """One replica's runner and locks, and the events that it published."""

    def __init__(
        self, pool: ConnectionPool[Connection[Any]], client: redis.Redis, *, lease: timedelta, name: str = "test:1"
    ) -> None:
        self.locks = Locks(client, namespace="secrets-bridge", lease=lease)
        self.locks.start()
        outbox = Outbox(Router(targets([noop], [Noop()])), trigger=lambda _delivery: None)
        self.runner = Runner(pool, name, lease, timedelta(days=7), outbox)

    @property
    def events(self) -> list[Event]:
        """What the outbox has, oldest first."""
        with self.runner.pool.connection() as connection:
            found = connection.cursor(row_factory=dict_row).execute(EVENTS).fetchall()
        return [read_notification(row).event for row in found]

    def acquire(self, sweeper: Sweeper[Any], settings: SweeperSettings, slot: int | None = None) -> Lease | Refusal:
        """Take the lock as the middleware does."""
        return self.locks.acquire(sweeper.name, slot=slot, sent=None, interval=settings.interval)

    def run(self, sweeper: Sweeper[Any], settings: SweeperSettings, slot: int | None = None) -> Sweep:
        """Do one whole run: lock, sweep, release."""
        lease = self.acquire(sweeper, settings, slot)
        assert isinstance(lease, Lease), lease
        try:
            return self.runner.run(sweeper, settings, lease)
        finally:
            self.locks.release(lease)

    def fails(self, sweeper: Sweeper[Any], settings: SweeperSettings, slot: int | None = None) -> SweepFailed:
        """Do one whole run that must fail."""
        try:
            self.run(sweeper, settings, slot)
        except SweepFailed as error:
            return error
        raise AssertionError("the run did not fail")


def insert_wrap(sql: Connection[Any], expires_at: datetime, *, consumed: bool = False) -> str:
    """Insert a wrap and give its id."""
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
    """Insert an agent and give its id."""
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
    """Insert a job and give its id."""
    row = sql.execute(
        "INSERT INTO sync_jobs (job_type, status, correlation_id, claim_expires_at, payload, agent_scope, request_id)"
        " VALUES (%s, %s, gen_random_uuid(), %s, %s, %s, %s) RETURNING id::text",
        [job_type, status, claim_expires_at, payload, agent_scope, request_id],
    ).fetchone()
    assert row is not None
    return str(row[0])


def rows(sql: Connection[Any], query: str) -> list[dict[str, Any]]:
    """Give a query's rows as dictionaries."""
    with sql.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query.encode()).fetchall()


def column(sql: Connection[Any], query: str) -> list[Any]:
    """Give the first column of a query's rows."""
    return [row[0] for row in sql.execute(query.encode())]


def eventually(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    """Wait until the condition gives something true, and give that; fail after the deadline."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError("it did not come true in time")


class NoTransport:
    """A way out that leads nowhere, for sinks that need none."""

    now = FIXED

    async def post(self, *_: object, **__: object) -> Answer:
        raise AssertionError("nothing may be sent")

    async def mail(self, *_: object, **__: object) -> None:
        raise AssertionError("nothing may be sent")

    async def child(self, *_: object, **__: object) -> int:
        raise AssertionError("nothing may be started")
