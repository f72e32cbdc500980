"""agents-stale: flags active agents without a heartbeat as stale; the next heartbeat flips them back.

An agent that never sent a heartbeat has none to be late with: its NULL is not before any cutoff, and it stays.
"""

from app.core.config import variable
from app.core.events import Severity
from app.core.values import Cadence, PositiveDuration
from app.sweeping.strategies import PageScan
from app.sweeping.sweeper import EventText, SweeperSettings, sweeper


class AgentsStale(SweeperSettings):
    """When an agent counts as stale."""

    interval: Cadence = variable(
        "SB_SWEEP_AGENTS_INTERVAL",
        "SB_WORKER_AGENTS_STALE_INTERVAL",
        default="60s",
        meaning="how often silent agents are looked for",
    )
    stale_after: PositiveDuration = variable(
        "SB_SWEEP_AGENTS_STALE_AFTER",
        "SB_WORKER_AGENTS_STALE_AFTER",
        default="5m",
        meaning="time without a heartbeat after which an active agent is stale",
    )


# The sum of nothing keeps the planner off every index: with old statistics it would read a whole one for every range
# of pages, and never come to their end.
FLIP = """
WITH due AS MATERIALIZED (
    SELECT ctid FROM agents
     WHERE ctid >= %(start)s::tid AND ctid < %(stop)s::tid
       AND status || '' = 'active' AND last_seen_at + interval '0' < %(cutoff)s
     LIMIT %(limit)s
), held AS MATERIALIZED (
    SELECT ctid FROM agents
     WHERE NOT %(look)s AND ctid = ANY (ARRAY(SELECT ctid FROM due))
       AND status || '' = 'active' AND last_seen_at + interval '0' < %(cutoff)s
       FOR NO KEY UPDATE SKIP LOCKED
), flipped AS (
    UPDATE agents SET status = 'stale'
     WHERE ctid = ANY (ARRAY(SELECT ctid FROM held))
       AND status || '' = 'active' AND last_seen_at + interval '0' < %(cutoff)s
 RETURNING 1
)
SELECT count(*) AS found, max(ctid)::text AS last, (SELECT count(*) FROM flipped) AS changed,
       greatest(count(*) - (SELECT count(*) FROM held), 0) AS skipped_locked
  FROM due
"""


@sweeper(
    "agents-stale",
    needs={"agents": ("SELECT", "UPDATE")},
    settings=AgentsStale,
    text=EventText(
        Severity.WARN,
        "agents flagged stale (no heartbeat past cutoff)",
        "flag stale agents failed",
        "flipped",
    ),
)
def agents_stale(settings: AgentsStale) -> PageScan:
    """Flip agents without a heartbeat for so long."""
    return PageScan(FLIP, older_than=settings.stale_after)
