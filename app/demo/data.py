"""A control plane's data: the backlog when the worker starts, and what keeps arriving."""

from __future__ import annotations

import json
from typing import Any

from psycopg import Connection

#: Discover targets, in two of the published shapes; their agents are among those that `pile_up` makes.
TARGETS = json.dumps(
    [
        {"agent_id": "00000000-0000-4000-8000-000000000001", "provider": "vault", "config": {"kvPrefix": "apps"}},
        {"name": "eu-aws", "cluster": "eu-1", "provider_type": "aws-sm", "scope": {"prefix": "prod/"}},
        {"cluster": "us-1", "provider": "vault", "scope": "team-a/"},
    ]
)

# Small enough for a newcomer to wait for; the sweeps would take half a million as well.
_PILE = (
    """
    INSERT INTO secret_wraps (encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash, byte_length,
                              expires_at, consumed_at, consumed_by_user)
    SELECT decode(repeat(md5(n::text), 4), 'hex'), decode(md5(n::text), 'hex'), decode(md5(n::text), 'hex'),
           'local:demo', decode(md5(n::text), 'hex'), 64,
           now() + (n % 40 - 29) * interval '1 hour',
           CASE WHEN n % 3 < 2 THEN now() - interval '2 days' END, CASE WHEN n % 3 < 2 THEN 'somebody' END
      FROM generate_series(1, 60000) AS n
    """,
    """
    INSERT INTO secrets (cluster_name, provider_type, secret_ref, last_seen_at)
    SELECT 'eu-' || n % 3, 'vault', 'apps/service-' || n, now() - n % 30 * interval '1 hour'
      FROM generate_series(1, 9000) AS n
    """,
    """
    INSERT INTO agents (id, name, secret_hash, status, last_seen_at, cluster_name)
    SELECT ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, 'agent-' || n, '\\x01', 'active',
           CASE WHEN n % 50 > 0 THEN now() - CASE WHEN n % 6 = 0 THEN interval '1 hour' ELSE interval '5 s' END END,
           'eu-' || n % 3
      FROM generate_series(1, 300) AS n
    """,
    """
    INSERT INTO sync_jobs (job_type, status, correlation_id, claim_expires_at)
    SELECT (ARRAY['sync', 'verify', 'patch', 'read'])[1 + n % 4],
           CASE WHEN n % 10 = 0 THEN 'claimed' ELSE 'succeeded' END, gen_random_uuid(), now() - interval '1 minute'
      FROM generate_series(1, 4000) AS n
    """,
    "ANALYZE",
)

# Half a second of a control plane in use: requests make wraps, agents send heartbeats, take jobs, finish most of them.
_MOMENT = (
    """
    INSERT INTO secret_wraps (encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash, byte_length,
                              expires_at)
    SELECT '\\x01', '\\x02', '\\x03', 'local:demo', '\\x04', 1, now() + random() * interval '20 s'
      FROM generate_series(1, 40)
    """,
    """
    UPDATE agents SET last_seen_at = now(), status = 'active'
     WHERE status IN ('active', 'stale') AND last_seen_at IS NOT NULL AND random() < 0.02
    """,
    "UPDATE secrets SET last_seen_at = now(), status = 'present' WHERE random() < 0.002",
    """
    UPDATE secrets SET last_seen_at = now() - interval '25 hours'
     WHERE id IN (SELECT id FROM secrets WHERE status = 'present' ORDER BY random() LIMIT 3)
    """,
    """
    INSERT INTO sync_jobs (job_type, status, correlation_id, claim_expires_at)
    SELECT 'sync', 'claimed', gen_random_uuid(), now() + random() * interval '6 s' FROM generate_series(1, 4)
    """,
    """
    UPDATE sync_jobs SET status = 'succeeded'
     WHERE status = 'claimed' AND claim_expires_at > now() AND random() < 0.2
    """,
    """
    UPDATE sync_jobs SET status = CASE status WHEN 'queued' THEN 'claimed' ELSE 'succeeded' END,
           claim_expires_at = now() + interval '30 s'
     WHERE job_type = 'discover' AND status IN ('queued', 'claimed') AND random() < 0.2
    """,
    # Every other second a change is to be watched, every twentieth of them at an ArgoCD that is switched off.
    """
    INSERT INTO gitops_observations (request_id, argocd_endpoint_id, application_name, application_namespace,
                                     polling_state, timeout_at)
    SELECT r.id, e.id, 'service-' || n, 'apps', 'queued', now() + interval '16 s'
      FROM (SELECT count(*) AS n FROM gitops_observations) AS so_far, access_requests AS r, argocd_endpoints AS e
     WHERE r.requester_id = 'demo' AND e.enabled = (n % 20 <> 19) AND random() < 0.5
    """,
)


def pile_up(connection: Connection[Any]) -> None:
    """Insert the backlog."""
    for statement in _PILE:
        connection.execute(statement)


def moment(connection: Connection[Any]) -> None:
    """Apply what happens at a control plane in half a second."""
    for statement in _MOMENT:
        connection.execute(statement)


OBSERVATIONS = "SELECT polling_state, count(*) FROM gitops_observations GROUP BY 1 ORDER BY 1"
#: What was seen last, newest first.
SEEN = """
SELECT application_name, polling_state, observed_state ->> 'health_status', observed_state ->> 'sync_status',
       observed_state ->> 'operation_phase', coalesce(last_error, '')
  FROM gitops_observations WHERE polls_count > 0 ORDER BY updated_at DESC, application_name LIMIT 5
"""


def observations(connection: Connection[Any]) -> dict[str, int]:
    """Count observations by state."""
    return dict(connection.execute(OBSERVATIONS).fetchall())


def seen(connection: Connection[Any]) -> list[str]:
    """Return a line for each of the observations that were polled last, newest first."""
    return [
        f"{name:<12} {state:<18} {' '.join(filter(None, (health, sync, phase))):<32} {error}"[:110]
        for name, state, health, sync, phase, error in connection.execute(SEEN)
    ]
