"""discover-scheduler: enqueues one discover job for each configured target that has none open.

Each target is a statement and a transaction of its own: one that fails is counted and the others go on. A target gets
one job a slot at most, so that the retry of a run in which some failed does not repeat those that worked, even if
their job is done by then.
"""

import json
from collections.abc import Mapping
from typing import Annotated

import structlog
from pydantic import BeforeValidator

from app.core import metrics
from app.core.config import variable
from app.core.events import Severity
from app.core.values import Cadence
from app.discovery.targets import Target, Targets, parse
from app.sweeping.strategies import Items
from app.sweeping.strategy import Run
from app.sweeping.sweeper import EventText, SweeperSettings, sweeper

log = structlog.get_logger("sweep")


def _targets(value: object) -> object:
    return parse(value) if isinstance(value, str) else value


class DiscoverScheduler(SweeperSettings):
    """What is discovered, and when."""

    interval: Cadence = variable(
        "SB_SWEEP_DISCOVER_INTERVAL",
        "SB_WORKER_DISCOVER_INTERVAL",
        default="5m",
        meaning="how often discover jobs are enqueued",
    )
    targets: Annotated[Targets | None, BeforeValidator(_targets)] = variable(
        "SB_DISCOVER_TARGETS_JSON",
        default=None,
        secret=True,
        meaning="what to discover: a JSON list of {agent_id, provider, config, scope}; unset: nothing",
    )

    @property
    def enabled(self) -> bool:
        """Only with targets."""
        return self.targets is not None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd about the targets."""
        return self.targets.warnings if self.targets else ()


AGENT = """
SELECT count(*) AS known,
       coalesce(max(coalesce(cluster_name, scope ->> 'cluster', scope ->> 'cluster_name')), '') AS cluster
  FROM agents
 WHERE id = %(agent)s::uuid AND status <> 'revoked'
"""

# A claimed job is open even when its claim ran out: jobs-recovery or another agent has yet to take it up. A job
# without agent_id is for any agent of the cluster, so for this one too.
ENQUEUE = """
WITH enqueued AS (
    INSERT INTO sync_jobs (job_type, status, correlation_id, agent_scope, payload)
    SELECT 'discover', 'queued', gen_random_uuid(), %(agent_scope)s::jsonb, %(payload)s::jsonb
     WHERE NOT EXISTS (
           SELECT FROM sync_jobs
            WHERE job_type = 'discover'
              AND (status = 'queued' OR status = 'claimed' OR created_at >= %(slot)s)
              AND payload ->> 'target_provider_type' = %(provider)s
              AND coalesce(nullif(payload -> 'target_provider_config', 'null'), '{}') = %(config)s::jsonb
              AND coalesce(payload ->> 'cluster_name', '') = %(cluster)s
              AND coalesce(payload ->> 'scope', '') = %(scope)s
              AND coalesce(payload -> 'target_scope', 'null') = %(raw_scope)s::jsonb
              AND coalesce(agent_scope ->> 'agent_id', %(agent)s) = %(agent)s)
 RETURNING 1
)
SELECT count(*) AS changed FROM enqueued
"""


@sweeper(
    "discover-scheduler",
    needs={"sync_jobs": ("SELECT", "INSERT"), "agents": ("SELECT",)},
    settings=DiscoverScheduler,
    text=EventText(Severity.INFO, "discover jobs enqueued", "some discover targets failed to enqueue", "enqueued"),
    counts=("already_open", "unknown_agent", "failed"),
    fails_by="failed",
)
def discover_scheduler(settings: DiscoverScheduler) -> Items[Target]:
    """Enqueue one job for each target."""
    return Items(settings.targets.all if settings.targets else (), _enqueue)


def _enqueue(run: Run, target: Target) -> Mapping[str, int]:
    names = {"task": "discover-scheduler", "target": target.name}
    cluster = target.cluster
    if target.agent_id:
        agent = run.attempt(AGENT, names, agent=target.agent_id)
        if agent is None:
            return {"failed": 1}
        if not agent["known"]:
            log.warning("discover target skipped, its agent is unknown or revoked", **names)
            metrics.TARGETS_SKIPPED.labels("discover-scheduler").inc()
            return {"unknown_agent": 1}
        cluster = cluster or agent["cluster"]
    answer = run.attempt(
        ENQUEUE,
        names,
        slot=run.slot_start,
        agent_scope=json.dumps(target.agent_scope(cluster)),
        payload=json.dumps(target.payload(cluster)),
        provider=target.provider,
        config=json.dumps(target.config),
        cluster=cluster,
        scope=target.scope,
        raw_scope=json.dumps(target.raw_scope),
        agent=target.agent_id,
    )
    if answer is None:
        return {"failed": 1}
    return answer if answer["changed"] else {"already_open": 1}
