"""discover-stuck: ends discoveries that have been running for longer than twice their connection's interval.

The net below jobs-recovery, which fails a connection as soon as the claim of its job has run out: what is left is a
job that no agent took, one whose end nobody wrote down, or one that was never made. `last_discover_at` moves as well:
without it the connection would be due again at once.
"""

from app.core.config import variable
from app.core.events import Severity
from app.core.values import Cadence
from app.sweeping.scans.page_scan import PageScan
from app.sweeping.scans.sql import page_sql
from app.sweeping.sweeper import EventText, SweeperSettings, sweeper


class DiscoverStuck(SweeperSettings):
    """When connections are looked at."""

    interval: Cadence = variable(
        "SB_SWEEP_DISCOVER_STUCK_INTERVAL",
        default="60s",
        meaning="how often discoveries that run for longer than twice their connection's interval are looked for",
    )


# The table is small and no index knows what runs: of a connection that admins alone start it is not even in the
# partial one.
FAIL = page_sql(
    "provider_connections",
    due="last_discover_status = 'running' AND coalesce("
    "last_discover_started_at < %(cutoff)s - 2 * discover_interval_seconds * interval '1 s', true)",
    since="last_discover_started_at + 2 * discover_interval_seconds * interval '1 s'",
    change="UPDATE provider_connections SET last_discover_status = 'failure', last_discover_at = now(),"
    " last_discover_finished_at = now(), last_discover_error = 'no result within twice the interval'",
)


@sweeper(
    "discover-stuck",
    needs={"provider_connections.discover_interval_seconds": ("SELECT", "UPDATE")},
    settings=DiscoverStuck,
    due=lambda _own: FAIL.due,
    text=EventText(Severity.WARN, "stuck discoveries marked failed", "end stuck discoveries failed", "flipped"),
)
def discover_stuck(_settings: DiscoverStuck) -> PageScan:
    """Fail what has been running for too long."""
    return PageScan(FAIL)
