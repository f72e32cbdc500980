"""agents-stale: flags active agents without a heartbeat as stale; the next heartbeat flips them back.

An agent that never sent a heartbeat has none to be late with: its NULL is not before any cutoff, and it stays.
"""

from app.core.config import variable
from app.core.events import Severity
from app.core.values import Cadence, PositiveDuration
from app.sweeping.scans.page_scan import PageScan
from app.sweeping.scans.sql import page_sql
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


FLIP = page_sql(
    "agents",
    due="status = 'active' AND last_seen_at < %(cutoff)s",
    since="last_seen_at",
    change="UPDATE agents SET status = 'stale'",
)


@sweeper(
    "agents-stale",
    needs={"agents": ("SELECT", "UPDATE")},
    settings=AgentsStale,
    due=lambda own: FLIP.due.older(own.stale_after),
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
