"""gitops-poller: asks ArgoCD, read-only, whether changes have landed.

A transaction writes the results that are there and claims what is due; between transactions the polls go on. A claim
stamps `last_polled_at`, so that an observation is claimed once a slot, by one run. A result is written only over the
row that was claimed: `polls_count` and the stamp must not have moved, and the row must still be open.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator

from app.core.config import variable
from app.core.events import Severity
from app.core.values import Bool, Cadence, PositiveDuration, PositiveInt, parse_bool
from app.gitops.model import Endpoint, Observation, Result
from app.gitops.settings import GitopsSettings
from app.kms.envelope import Envelope
from app.kms.settings import KmsSettings
from app.sweeping.strategy import Run, Step, Strategy
from app.sweeping.sweeper import EventText, sweeper


def _on(value: object) -> object:
    if value in ("on", "off"):
        return value == "on"
    try:
        return parse_bool(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError("not a switch; accepted: on, off, true, false") from None


class GitopsPoller(GitopsSettings, KmsSettings):
    """Whom to ask, how hard, and what to believe."""

    interval: Cadence = variable(
        "SB_SWEEP_GITOPS_POLL_INTERVAL",
        "SB_WORKER_GITOPS_POLL_INTERVAL",
        default="15s",
        meaning="how often each open observation is polled",
    )
    timeout: PositiveDuration = variable(
        "SB_WORKER_GITOPS_HTTP_TIMEOUT", default="15s", meaning="time that one request to ArgoCD may take in all"
    )
    batch_size: PositiveInt = variable(
        "SB_WORKER_GITOPS_BATCH_SIZE", default="20", meaning="observations claimed at a time"
    )
    concurrency: PositiveInt = variable(
        "SB_WORKER_GITOPS_CONCURRENCY", default="8", meaning="requests to one ArgoCD at a time"
    )
    freshness: Annotated[bool, BeforeValidator(_on)] = variable(
        "SB_WORKER_GITOPS_FRESHNESS",
        default="on",
        meaning="off: what ArgoCD saw before the observation decides as well, as in the Go worker",
    )
    app_namespace: Bool = variable(
        "SB_WORKER_GITOPS_APP_NAMESPACE",
        default="false",
        meaning="after a 403, ask again with the observation's namespace as the Application's own",
    )

    def problems(self, *, dev: bool) -> Iterable[str]:
        """Return what would keep ArgoCD's tokens closed."""
        return self.key_problems(dev=dev)


# Due is what was not claimed since the slot began; of a run that outlives its time for a slow endpoint's sake, since
# the slot that has come meanwhile.
CLAIM = """
WITH slot AS (
    SELECT CASE WHEN %(late)s THEN greatest(date_bin(%(interval)s, now(), timestamptz 'epoch'), %(slot)s)
                ELSE %(slot)s END AS began
), due AS (
    SELECT o.id
      FROM gitops_observations AS o
      JOIN argocd_endpoints AS e ON e.id = o.argocd_endpoint_id AND e.enabled AND e.deleted_at IS NULL
     WHERE o.polling_state IN ('queued', 'active')
       AND (o.last_polled_at IS NULL OR o.last_polled_at < (SELECT began FROM slot))
       AND o.argocd_endpoint_id <> ALL (%(busy)s::uuid[])
       AND NOT EXISTS (SELECT FROM secrets_bridge_worker.gitops_rest AS r
                        WHERE r.endpoint_id = o.argocd_endpoint_id AND r.until > now())
     ORDER BY o.last_polled_at NULLS FIRST, o.created_at
     LIMIT %(limit)s
       FOR UPDATE OF o SKIP LOCKED
), claimed AS (
    UPDATE gitops_observations AS o
       SET polling_state = 'active', last_polled_at = greatest(now(), (SELECT began FROM slot))
      FROM due
     WHERE o.id = due.id AND o.polling_state IN ('queued', 'active')
 RETURNING o.*
)
SELECT c.id::text, c.argocd_endpoint_id::text AS endpoint, c.application_name, c.application_namespace, c.polls_count,
       c.last_polled_at, c.created_at,
       (SELECT min(m.project_name) FROM gitops_app_mappings AS m
         WHERE m.argocd_endpoint_id = c.argocd_endpoint_id AND m.application_name = c.application_name
           AND m.deleted_at IS NULL
        HAVING count(DISTINCT m.project_name) = 1) AS project
  FROM claimed AS c
"""

ENDPOINTS = """
SELECT id::text, base_url, token_ciphertext, token_nonce, token_data_key_ciphertext, token_kms_key_id, tls_ca_pem,
       tls_server_name, last_health_error IS NOT NULL AS unhealthy
  FROM argocd_endpoints
 WHERE id = ANY (%(ids)s::uuid[])
"""

# Rows are locked in one order, and before they are written, so that no two transactions wait for each other.
WRITE = """
WITH result AS (
    SELECT * FROM jsonb_to_recordset(%(results)s::jsonb)
        AS r (id uuid, polls integer, polled_at timestamptz, state jsonb, error text, verdict text)
), mine AS MATERIALIZED (
    SELECT o.id FROM gitops_observations AS o JOIN result AS r ON r.id = o.id
     WHERE o.polls_count = r.polls AND o.last_polled_at = r.polled_at AND o.polling_state IN ('queued', 'active')
     ORDER BY o.id
       FOR UPDATE OF o
), written AS (
    UPDATE gitops_observations AS o
       SET observed_state = CASE WHEN r.state IS NULL THEN o.observed_state
                                 ELSE '{"resources": [], "resource_count": 0}'::jsonb || o.observed_state || r.state
                            END,
           polls_count = o.polls_count + 1,
           last_error = r.error,
           polling_state = r.verdict,
           terminal_at = CASE WHEN r.verdict = 'active' THEN o.terminal_at ELSE now() END
      FROM result AS r, mine
     WHERE o.id = r.id AND o.id = mine.id
       AND o.polls_count = r.polls AND o.last_polled_at = r.polled_at AND o.polling_state IN ('queued', 'active')
 RETURNING r.verdict, r.error
)
SELECT count(*) AS polled,
       count(*) FILTER (WHERE verdict = 'applied') AS applied,
       count(*) FILTER (WHERE verdict = 'failed') AS failed,
       count(*) FILTER (WHERE error IS NOT NULL) AS poll_errors
  FROM written
"""

HEALTH = """
WITH health AS (
    SELECT * FROM jsonb_to_recordset(%(health)s::jsonb) AS n (id uuid, error text, rest double precision)
), before AS MATERIALIZED (
    SELECT e.id, e.last_health_error AS error FROM argocd_endpoints AS e JOIN health AS n ON n.id = e.id
     WHERE e.deleted_at IS NULL
     ORDER BY e.id
       FOR UPDATE OF e
), written AS (
    UPDATE argocd_endpoints AS e SET last_health_at = now(), last_health_error = n.error
      FROM health AS n, before AS b
     WHERE e.id = n.id AND e.id = b.id
), rests AS (
    INSERT INTO secrets_bridge_worker.gitops_rest AS r (endpoint_id, until)
    SELECT id, now() + rest * interval '1 s' FROM health WHERE rest > 0
        ON CONFLICT (endpoint_id) DO UPDATE SET until = greatest(r.until, excluded.until)
)
SELECT count(*) FILTER (WHERE b.error IS NULL AND n.error IS NOT NULL) AS endpoints_unhealthy,
       count(*) FILTER (WHERE b.error IS NOT NULL AND n.error IS NULL) AS endpoints_recovered
  FROM before AS b JOIN health AS n ON n.id = b.id
"""

# Once a run: what will not be asked says why, and rests that are over are forgotten.
TIDY = """
WITH forgotten AS (
    DELETE FROM secrets_bridge_worker.gitops_rest WHERE until < now()
), shut AS MATERIALIZED (
    SELECT o.id FROM gitops_observations AS o JOIN argocd_endpoints AS e ON e.id = o.argocd_endpoint_id
     WHERE o.polling_state IN ('queued', 'active') AND (NOT e.enabled OR e.deleted_at IS NOT NULL)
       AND o.last_error IS DISTINCT FROM 'endpoint disabled'
     LIMIT 1000
       FOR UPDATE OF o SKIP LOCKED
), written AS (
    UPDATE gitops_observations AS o SET last_error = 'endpoint disabled'
      FROM shut
     WHERE o.id = shut.id AND o.polling_state IN ('queued', 'active')
 RETURNING 1
)
SELECT count(*) AS endpoint_disabled FROM written
"""

#: What a run reports as changed.
DECIDED = ("applied", "failed", "endpoints_unhealthy", "endpoints_recovered")


class Polling(Strategy):
    """Write the results that are there, claim what is due; poll in between."""

    def __init__(self, settings: GitopsPoller) -> None:
        from app.gitops.poller import Poller  # noqa: PLC0415 - an HTTP client is 17 MiB, for a run that polls alone

        self._settings = settings
        self._poller = Poller(
            settings.keys,
            None if settings.kms_backend == "local" else settings.key_context,
            deadline=settings.timeout / timedelta(seconds=1),
            concurrency=settings.concurrency,
            fresh=settings.freshness,
        )
        self._tidied = False

    def step(self, run: Run, *, over: bool) -> Step:
        """Write results and health, and claim more if there is time."""
        poller = self._poller
        counts = {} if self._tidied else run.row(TIDY)
        self._tidied = True
        counts |= _write(run, poller.take_results())
        if health := poller.take_health():
            rows = [{"id": change.endpoint, "error": change.error, "rest": change.rest} for change in health]
            counts |= run.row(HEALTH, health=json.dumps(rows))
        if poller.may_claim(over=over):
            poller.submit(self._claim(run, over=over), self._settings.batch_size)
        counts["changed"] = sum(counts.get(name, 0) for name in DECIDED)
        return Step(counts, poller.done, None if poller.pending else 0)

    def wait(self, stopping: Callable[[], bool]) -> None:
        """Poll until there is something to write or to claim."""
        self._poller.wait(stopping)

    def close(self) -> None:
        """End what is under way."""
        self._poller.close()

    def _claim(self, run: Run, *, over: bool) -> list[Observation]:
        own, poller = self._settings, self._poller
        due = run.rows(
            CLAIM, interval=own.interval, slot=run.slot_start, late=over, busy=poller.busy, limit=own.batch_size
        )
        unknown = {row["endpoint"] for row in due}.difference(poller.known)
        if unknown:
            poller.add_endpoints(_endpoint(row) for row in run.rows(ENDPOINTS, ids=list(unknown)))
        return [_observation(row, own) for row in due]


@sweeper(
    "gitops-poller",
    needs={
        "gitops_observations": ("SELECT", "UPDATE"),
        "argocd_endpoints": ("SELECT", "UPDATE"),
        "gitops_app_mappings": ("SELECT",),
    },
    settings=GitopsPoller,
    text=EventText(
        Severity.INFO,
        "gitops observations polled",
        "claim gitops observations failed",
        "",
        warn_by=("failed", "endpoints_unhealthy"),
    ),
    counts=(
        "polled",
        "applied",
        "failed",
        "poll_errors",
        "overtaken",
        "endpoints_unhealthy",
        "endpoints_recovered",
        "endpoint_disabled",
    ),
)
def gitops_poller(settings: GitopsPoller) -> Polling:
    """Poll what is due."""
    return Polling(settings)


def _endpoint(row: Mapping[str, Any]) -> Endpoint:
    sealed = ("token_ciphertext", "token_nonce", "token_data_key_ciphertext", "token_kms_key_id")
    plain = ("id", "base_url", "tls_ca_pem", "tls_server_name", "unhealthy")
    return Endpoint(**{name: row[name] for name in plain}, envelope=Envelope(**{name: row[name] for name in sealed}))


def _observation(row: Mapping[str, Any], settings: GitopsPoller) -> Observation:
    known = {"project": row["project"]} if row["project"] else {}
    if settings.app_namespace and row["application_namespace"]:
        known["appNamespace"] = row["application_namespace"]
    return Observation(
        row["id"],
        row["endpoint"],
        row["application_name"],
        known,
        row["polls_count"],
        row["last_polled_at"],
        row["created_at"],
    )


def _write(run: Run, results: list[Result]) -> dict[str, int]:
    if not results:
        return {}
    rows = [
        {
            "id": result.observation.id,
            "polls": result.observation.polls_count,
            "polled_at": result.observation.polled_at.isoformat(),
            "state": result.state,
            "error": result.error,
            "verdict": result.verdict,
        }
        for result in results
    ]
    counts = run.row(WRITE, results=json.dumps(rows))
    return {**counts, "overtaken": len(results) - counts["polled"]}
