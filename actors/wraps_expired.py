"""wraps-expired: deletes one-time secret wraps whose time is over, consumed or not."""

from app.core.config import variable
from app.core.events import Severity
from app.core.values import Cadence, Duration
from app.sweeping.page_sql import page_sql
from app.sweeping.strategies import PageScan
from app.sweeping.sweeper import EventText, SweeperSettings, sweeper


class WrapsExpired(SweeperSettings):
    """When wraps are deleted."""

    interval: Cadence = variable(
        "SB_SWEEP_WRAPS_INTERVAL",
        "SB_WORKER_WRAPS_EXPIRED_INTERVAL",
        default="60s",
        meaning="how often expired wraps are deleted",
    )
    retention: Duration = variable(
        "SB_SWEEP_WRAPS_RETENTION",
        default="0s",
        meaning="how long an expired wrap is kept, so that the api can still answer that it is gone",
    )


DELETE = page_sql("secret_wraps", due="expires_at + interval '0' <= %(cutoff)s", change="DELETE FROM secret_wraps")


@sweeper(
    "wraps-expired",
    needs={"secret_wraps": ("SELECT", "UPDATE", "DELETE")},
    settings=WrapsExpired,
    text=EventText(Severity.INFO, "expired wraps purged", "delete expired wraps failed", "deleted"),
)
def wraps_expired(settings: WrapsExpired) -> PageScan:
    """Delete wraps that expired longer ago than the retention."""
    return PageScan(DELETE, older_than=settings.retention)
