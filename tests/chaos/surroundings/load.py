"""What a control plane does meanwhile: rows expire, and some of them are renewed just before."""

from __future__ import annotations

import random
import threading
from contextlib import suppress
from datetime import timedelta
from typing import Any, LiteralString, Self

import psycopg
from psycopg import Connection

from app.storage.postgres import only_row
from tests.chaos.surroundings.outside import DONE, FAILED, PROGRESSING
from tests.support.rows import insert_cross_team_request, insert_reveal_session, insert_wrap

# Each statement is a transaction of its own. Rows expire within seconds, so that sweeps meet those that are renewed.
_MOMENT: tuple[LiteralString, ...] = (
    """
    INSERT INTO secret_wraps (encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash, byte_length,
                              expires_at)
    SELECT '\\x01', '\\x02', '\\x03', 'local:chaos', '\\x04', 1, now() + random() * interval '4 s'
      FROM generate_series(1, 12)
    """,
    """
    WITH due AS (
        SELECT id FROM secret_wraps WHERE expires_at < now() + interval '2 s' ORDER BY random() LIMIT 3
           FOR UPDATE SKIP LOCKED
    ), kept AS (
        UPDATE secret_wraps SET expires_at = now() + interval '10 days' WHERE id IN (SELECT id FROM due) RETURNING id
    ) INSERT INTO chaos.renewed SELECT 'secret_wraps', id::text FROM kept ON CONFLICT DO NOTHING
    """,
    """
    INSERT INTO secrets (cluster_name, provider_type, secret_ref, last_seen_at)
    SELECT 'eu', 'vault', gen_random_uuid()::text, now() - interval '24 hours' + random() * interval '4 s'
      FROM generate_series(1, 4)
    """,
    """
    WITH due AS (
        SELECT id FROM secrets WHERE status = 'present' AND last_seen_at < now() - interval '23 hours'
         ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED
    ), kept AS (
        UPDATE secrets SET last_seen_at = now() + interval '10 days' WHERE id IN (SELECT id FROM due) RETURNING id
    ) INSERT INTO chaos.renewed SELECT 'secrets', id::text FROM kept ON CONFLICT DO NOTHING
    """,
    """
    INSERT INTO agents (name, secret_hash, status, last_seen_at)
    SELECT 'agent-' || gen_random_uuid(), '\\x01', 'active', now() - interval '5 minutes' + random() * interval '4 s'
      FROM generate_series(1, 2)
    """,
    """
    WITH due AS (
        SELECT id FROM agents WHERE status = 'active' AND last_seen_at < now() ORDER BY random() LIMIT 1
           FOR UPDATE SKIP LOCKED
    ), kept AS (
        UPDATE agents SET last_seen_at = now() + interval '10 days' WHERE id IN (SELECT id FROM due) RETURNING id
    ) INSERT INTO chaos.renewed SELECT 'agents', id::text FROM kept ON CONFLICT DO NOTHING
    """,
    """
    INSERT INTO sync_jobs (job_type, status, correlation_id, claim_expires_at)
    SELECT 'sync', 'claimed', gen_random_uuid(), now() + random() * interval '3 s' FROM generate_series(1, 2)
    """,
    """
    WITH due AS (
        SELECT id FROM sync_jobs WHERE status = 'claimed' AND job_type = 'sync'
           AND claim_expires_at < now() + interval '2 s'
         ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED
    ), kept AS (
        UPDATE sync_jobs SET claim_expires_at = now() + interval '10 days' WHERE id IN (SELECT id FROM due)
        RETURNING id
    ) INSERT INTO chaos.renewed SELECT 'sync_jobs', id::text FROM kept ON CONFLICT DO NOTHING
    """,
    """
    INSERT INTO sessions (user_id, token_hash, expires_at, idle_expires_at)
    SELECT gen_random_uuid(), uuid_send(gen_random_uuid()), moment, moment
      FROM (SELECT now() + random() * interval '4 s' AS moment FROM generate_series(1, 2)) AS moments
    """,
    # Connections that are to be discovered. Agents take some of the jobs and finish some of those; the claims of others
    # run out, and some connections have been running for too long.
    """
    INSERT INTO provider_connections (name, type, auth_method, cluster_name, discover_enabled,
                                      discover_interval_seconds, last_discover_at)
    VALUES (gen_random_uuid()::text, 'vault', 'kubernetes', 'eu', true, 60,
            now() - interval '60 s' + random() * interval '4 s')
    """,
    """
    UPDATE sync_jobs SET status = 'claimed', claim_expires_at = now() + random() * interval '4 s'
     WHERE id IN (SELECT id FROM sync_jobs WHERE job_type = 'discover' AND status = 'queued'
                   ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED)
    """,
    """
    WITH done AS (
        UPDATE sync_jobs SET status = 'succeeded'
         WHERE id IN (SELECT id FROM sync_jobs WHERE job_type = 'discover' AND status = 'claimed'
                         AND random() < 0.3 LIMIT 1 FOR UPDATE SKIP LOCKED)
     RETURNING payload ->> 'connection_id' AS connection
    ) UPDATE provider_connections SET last_discover_status = 'success', last_discover_at = now()
       WHERE id::text IN (SELECT connection FROM done)
    """,
    """
    UPDATE provider_connections SET last_discover_started_at = now() - interval '118 s'
     WHERE id IN (SELECT id FROM provider_connections WHERE last_discover_status = 'running'
                     AND last_discover_started_at > now() - interval '1 minute' AND random() < 0.2
                   LIMIT 1 FOR UPDATE SKIP LOCKED)
    """,
)
# One that will be done, one that will fail, or one that nobody hears of again and that times out.
_OBSERVATION: LiteralString = """
WITH request AS (
    INSERT INTO access_requests (requester_id, type, justification) VALUES ('chaos', 'update', 'j') RETURNING id
) INSERT INTO gitops_observations (request_id, argocd_endpoint_id, application_name, polling_state, timeout_at)
  SELECT request.id, endpoint.id, %(application)s, 'queued', now() + %(seconds)s * interval '1 s'
    FROM request CROSS JOIN (SELECT id FROM argocd_endpoints LIMIT 1) AS endpoint
"""
#: How long wraps would outlive the session that they were shown in.
HOUR = timedelta(hours=1)
_NOW: LiteralString = "SELECT now() + %s * interval '1 s'"


class Load:
    """Writes on a connection of its own, as the superuser, past every proxy, from a thread, until its context ends."""

    def __init__(self, url: str, seed: int, *, pause: float = 0.25) -> None:
        self._url = url
        self._random = random.Random(f"{seed}/load")
        self._pause = pause
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load")
        #: Moments of the load that were committed.
        self.moments = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            # A server that is down, full or read-only is what some rounds are about.
            with suppress(psycopg.Error), psycopg.connect(self._url, autocommit=True, connect_timeout=5) as connection:
                while not self._over.wait(self._random.uniform(0.5, 1.5) * self._pause):
                    self._moment(connection)
            self._over.wait(self._pause)

    def _moment(self, connection: Connection[Any]) -> None:
        for statement in _MOMENT:
            connection.execute(statement)
        chance = self._random
        if chance.random() < 0.4:
            application = chance.choice((DONE, FAILED, *PROGRESSING))
            connection.execute(_OBSERVATION, {"application": application, "seconds": chance.uniform(2, 6)})
        # By PostgreSQL's clock, which is not this machine's in some rounds.
        ends = only_row(connection.execute(_NOW, [chance.uniform(0, 4)]))[0]
        if chance.random() < 0.2:
            insert_reveal_session(connection, ends, [insert_wrap(connection, ends + HOUR) for _ in range(2)])
        if chance.random() < 0.2:
            insert_cross_team_request(connection, ends)
        self.moments += 1
