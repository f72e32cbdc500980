"""discover-scheduler: enqueues one discover job for each configured target that has none open.

One statement looks for the open jobs of many targets, and enqueues what is missing; a target that fails is singled out
and counted, and the others go on. A target gets one job a slot at most, so that the retry of a run in which some failed
does not repeat those that worked, even if their job is done by then.
"""

import json
from collections.abc import Mapping, Sequence
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
        """What is odd about the targets, and what every sweeper warns of."""
        return (*super().warnings, *(self.targets.warnings if self.targets else ()))


AGENTS = """
SELECT id::text, coalesce(cluster_name, scope ->> 'cluster', scope ->> 'cluster_name', '') AS cluster
  FROM agents
 WHERE id = ANY (%(ids)s::uuid[]) AND status <> 'revoked'
"""

# All jobs are read once, whatever the number of targets. A claimed job is open even when its claim ran out:
# jobs-recovery or another agent has yet to take it up. A job without agent_id is for any agent of the cluster, so for
# this one too.
ENQUEUE = """
WITH target AS (
    SELECT * FROM jsonb_to_recordset(%(targets)s::jsonb)
        AS t (agent_scope jsonb, payload jsonb, provider text, config jsonb, cluster text, scope text, raw_scope jsonb,
              agent text)
), open AS MATERIALIZED (
    SELECT payload, agent_scope FROM sync_jobs
     WHERE job_type = 'discover' AND (status = 'queued' OR status = 'claimed' OR created_at >= %(slot)s)
), enqueued AS (
    INSERT INTO sync_jobs (job_type, status, correlation_id, agent_scope, payload)
    SELECT 'discover', 'queued', gen_random_uuid(), t.agent_scope, t.payload
      FROM target AS t
     WHERE NOT EXISTS (
           SELECT FROM open AS o
            WHERE o.payload ->> 'target_provider_type' = t.provider
              AND coalesce(nullif(o.payload -> 'target_provider_config', 'null'), '{}') = t.config
              AND coalesce(o.payload ->> 'cluster_name', '') = t.cluster
              AND coalesce(o.payload ->> 'scope', '') = t.scope
              AND coalesce(o.payload -> 'target_scope', 'null') = coalesce(t.raw_scope, 'null')
              AND coalesce(o.agent_scope ->> 'agent_id', t.agent) = t.agent)
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
    return Items(settings.targets.all if settings.targets else (), _enqueue, _names)


def _names(target: Target) -> Mapping[str, str]:
    return {"task": "discover-scheduler", "target": target.name}


def _enqueue(run: Run, targets: Sequence[Target]) -> Mapping[str, int]:
    ids = [target.agent_id for target in targets if target.agent_id]
    clusters = {row["id"]: row["cluster"] for row in run.rows(AGENTS, ids=ids)} if ids else {}
    known = [target for target in targets if not target.agent_id or target.agent_id in clusters]
    rows = [_row(target, target.cluster or clusters.get(target.agent_id, "")) for target in known]
    changed = run.row(ENQUEUE, slot=run.slot_start, targets=json.dumps(rows))["changed"]
    for target in targets:
        if target.agent_id and target.agent_id not in clusters:
            log.warning("discover target skipped, its agent is unknown or revoked", **_names(target))
            metrics.TARGETS_SKIPPED.labels("discover-scheduler").inc()
    counts = {"already_open": len(known) - changed, "unknown_agent": len(targets) - len(known)}
    return {"changed": changed, **{name: number for name, number in counts.items() if number}}


def _row(target: Target, cluster: str) -> dict[str, object]:
    return {
        "agent_scope": target.agent_scope(cluster),
        "payload": target.payload(cluster),
        "provider": target.provider,
        "config": target.config,
        "cluster": cluster,
        "scope": target.scope,
        "raw_scope": target.raw_scope,
        "agent": target.agent_id,
    }
