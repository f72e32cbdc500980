"""cross-team-fill-window-expired: ends cross-team requests whose target team did not fill in the values in time.

A fill and this sweep exclude each other: the api fills only what is still pending and within its window.
"""

from app.core.config import variable
from app.core.events import Severity
from app.core.values import Cadence
from app.sweeping.scans.keyset_scan import KeysetScan
from app.sweeping.scans.sql import keyset_sql
from app.sweeping.sweeper import EventText, SweeperSettings, sweeper


class CrossTeamFillWindowExpired(SweeperSettings):
    """When requests are looked at."""

    interval: Cadence = variable(
        "SB_SWEEP_CROSS_TEAM_FILL_INTERVAL",
        "SB_WORKER_CROSS_TEAM_FILL_EXPIRED_INTERVAL",
        default="30s",
        meaning="how often cross-team requests whose fill window is over are looked for",
    )


# What the api is filling at this moment is skipped; the next run sees it if it was not.
EXPIRE = keyset_sql(
    "access_requests",
    column="fill_expires_at",
    still="type = 'cross_team' AND status = 'pending_values'",
    change="UPDATE access_requests SET status = 'expired'",
)


@sweeper(
    "cross-team-fill-window-expired",
    needs={"access_requests.fill_expires_at": ("SELECT", "UPDATE")},
    settings=CrossTeamFillWindowExpired,
    due=lambda _own: EXPIRE.due,
    text=EventText(
        Severity.INFO, "cross_team fill windows expired", "sweep cross_team fill expired failed", "requests_swept"
    ),
)
def cross_team_fill_window_expired(_settings: CrossTeamFillWindowExpired) -> KeysetScan:
    """Expire requests whose window is over, the oldest first."""
    return KeysetScan(EXPIRE)
