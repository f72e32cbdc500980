"""The control plane's side of a soak: each second as many rows that come due, and old ones taken away."""

from __future__ import annotations

from typing import Any

from psycopg import Connection

from tests.support.argocd import Argo, document, insert_endpoint

_ONCE = (
    """
    INSERT INTO agents (name, secret_hash, status, last_seen_at, cluster_name)
    SELECT 'agent-' || n, '\\x01', 'active', now(), 'eu-' || n % 3 FROM generate_series(1, 60) AS n
    """,
    """
    INSERT INTO secrets (cluster_name, provider_type, secret_ref)
    SELECT 'eu-' || n % 3, 'vault', 'apps/service-' || n FROM generate_series(1, 300) AS n
    """,
    """
    INSERT INTO provider_connections (name, type, auth_method, scope, cluster_name, discover_enabled,
                                      discover_interval_seconds)
    SELECT 'connection-' || n, 'vault', 'kubernetes', '{"kvPrefix": "apps"}', 'eu-' || n % 3, true, 60
      FROM generate_series(1, 6) AS n
    """,
    """
    WITH project AS (INSERT INTO projects (name) VALUES ('project') RETURNING id)
    INSERT INTO environments (project_id, name, type, kind) SELECT id, 'prod', 'prod', 'prod' FROM project
    """,
    "INSERT INTO teams (name) VALUES ('team')",
    "INSERT INTO access_requests (requester_id, type, justification) VALUES ('watched', 'update', 'soak')",
)

_EACH_SECOND = (
    """
    INSERT INTO secret_wraps (encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash, byte_length,
                              expires_at)
    SELECT '\\x01', '\\x02', '\\x03', 'local:soak', '\\x04', 1, now() + random() * interval '20 s'
      FROM generate_series(1, 20)
    """,
    "UPDATE agents SET last_seen_at = now(), status = 'active' WHERE random() < 0.05",
    "UPDATE secrets SET last_seen_at = now(), status = 'present' WHERE random() < 0.01",
    """
    UPDATE secrets SET last_seen_at = now() - interval '24 hours'
     WHERE id IN (SELECT id FROM secrets WHERE status = 'present' ORDER BY random() LIMIT 2)
    """,
    """
    INSERT INTO sync_jobs (job_type, status, correlation_id, claim_expires_at)
    SELECT 'sync', 'claimed', gen_random_uuid(), now() + random() * interval '6 s' FROM generate_series(1, 3)
    """,
    """
    INSERT INTO sessions (user_id, token_hash, expires_at, idle_expires_at)
    SELECT gen_random_uuid(), uuid_send(gen_random_uuid()), at, at
      FROM (SELECT now() + random() * interval '20 s' AS at FROM generate_series(1, 5)) AS ends
    """,
    """
    WITH wraps AS (
        INSERT INTO secret_wraps (encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash, byte_length,
                                  expires_at)
        SELECT '\\x01', '\\x02', '\\x03', 'local:soak', '\\x04', 1, now() + interval '1 hour' FROM generate_series(1, 2)
        RETURNING id
    )
    INSERT INTO reveal_sessions (user_id, project_id, environment_id, ttl_seconds, expires_at, wrap_ids)
    SELECT 'somebody', project_id, id, 10, now() + interval '10 s', ARRAY(SELECT id FROM wraps) FROM environments
    """,
    """
    INSERT INTO access_requests (requester_id, type, justification, status, target_team_id, target_project_id,
           target_environment_id, destination_provider_connection_id, destination_secret_ref, destination_keys,
           snap_requires_security_approval, snap_min_approvers, fill_expires_at)
    SELECT 'somebody', 'cross_team', 'soak', 'pending_values', teams.id, environments.project_id, environments.id,
           connection.id, 'apps/x', '[]', false, 1, now() + random() * interval '10 s'
      FROM teams, environments, (SELECT id FROM provider_connections LIMIT 1) AS connection
    """,
    """
    INSERT INTO gitops_observations (request_id, argocd_endpoint_id, application_name, polling_state, timeout_at)
    SELECT request.id, endpoint.id, 'app-' || trunc(8 * random()), 'queued', now() + interval '16 s'
      FROM access_requests AS request, argocd_endpoints AS endpoint, generate_series(1, 2)
     WHERE request.requester_id = 'watched'
    """,
    # Agents take discover jobs; most are done, some are left to the sweepers.
    """
    UPDATE sync_jobs SET status = 'claimed', claim_expires_at = now() + interval '10 s'
     WHERE job_type = 'discover' AND status = 'queued' AND random() < 0.5
    """,
    """
    UPDATE provider_connections
       SET last_discover_status = 'success', last_discover_at = now(), last_discover_finished_at = now()
     WHERE last_discover_status = 'running' AND random() < 0.05
    """,
    # The api's own housekeeping.
    "DELETE FROM sync_jobs WHERE created_at < now() - interval '3 minutes'",
    "DELETE FROM reveal_sessions WHERE expired_at < now() - interval '1 minute'",
    "DELETE FROM gitops_observations WHERE terminal_at < now() - interval '1 minute'",
    "DELETE FROM access_requests WHERE type = 'cross_team' AND created_at < now() - interval '1 minute'",
)


def begin(sql: Connection[Any], argocd: str) -> Argo:
    """Insert what is there from the start, with an ArgoCD at this URL, and return what that ArgoCD answers."""
    for statement in _ONCE:
        sql.execute(statement)
    insert_endpoint(sql, "argocd", argocd)
    return Argo({f"app-{n}": document(f"app-{n}", "Progressing" if n % 4 == 3 else "Healthy") for n in range(8)})


def second(sql: Connection[Any]) -> None:
    """Apply what happens at the control plane in one second."""
    for statement in _EACH_SECOND:
        sql.execute(statement)
