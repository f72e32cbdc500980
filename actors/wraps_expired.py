"""wraps-expired: deletes one-time secret wraps whose time is over, consumed or not."""

from app.core.config import variable
from app.core.events import Severity
from app.core.values import Cadence, Duration
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


# The sum of nothing keeps the planner off every index: with old statistics it would read a whole one for every range
# of pages, and never come to their end.
DELETE = """
WITH due AS MATERIALIZED (
    SELECT ctid FROM secret_wraps
     WHERE ctid >= %(start)s::tid AND ctid < %(stop)s::tid
       AND expires_at + interval '0' <= %(cutoff)s
     LIMIT %(limit)s
), held AS MATERIALIZED (
    SELECT ctid FROM secret_wraps
     WHERE NOT %(look)s AND ctid = ANY (ARRAY(SELECT ctid FROM due)) AND expires_at + interval '0' <= %(cutoff)s
       FOR UPDATE SKIP LOCKED
), deleted AS (
    DELETE FROM secret_wraps
     WHERE ctid = ANY (ARRAY(SELECT ctid FROM held)) AND expires_at + interval '0' <= %(cutoff)s
 RETURNING 1
)
SELECT count(*) AS found, max(ctid)::text AS last, (SELECT count(*) FROM deleted) AS changed,
       greatest(count(*) - (SELECT count(*) FROM held), 0) AS skipped_locked
  FROM due
"""


@sweeper(
    "wraps-expired",
    needs={"secret_wraps": ("SELECT", "UPDATE", "DELETE")},
    settings=WrapsExpired,
    text=EventText(Severity.INFO, "expired wraps purged", "delete expired wraps failed", "deleted"),
)
def wraps_expired(settings: WrapsExpired) -> PageScan:
    """Delete wraps that expired longer ago than the retention."""
    return PageScan(DELETE, older_than=settings.retention)
