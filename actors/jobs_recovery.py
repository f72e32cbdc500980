"""jobs-recovery: expires jobs whose claim ran out, most likely because the agent died while it executed them.

The api gives such a job to another agent as well when one asks; the grace leaves it the time to. A job that is
expired is never picked up again, and its parent request stays open: those are counted as `with_request`.
"""

from app.core.config import variable
from app.core.events import Severity
from app.core.values import Cadence, Duration
from app.sweeping.page_sql import page_sql
from app.sweeping.strategies import PageScan
from app.sweeping.sweeper import EventText, SweeperSettings, sweeper


class JobsRecovery(SweeperSettings):
    """When a claim counts as dead."""

    interval: Cadence = variable(
        "SB_SWEEP_JOBS_INTERVAL",
        "SB_WORKER_JOBS_RECOVERY_INTERVAL",
        default="30s",
        meaning="how often dead claims are looked for",
    )
    grace: Duration = variable(
        "SB_SWEEP_JOBS_GRACE",
        default="0s",
        meaning="time after the end of a claim in which another agent may still take the job over",
    )


EXPIRE = page_sql(
    "sync_jobs",
    due="status || '' = 'claimed' AND claim_expires_at + interval '0' < %(cutoff)s",
    change="UPDATE sync_jobs SET status = 'expired'",
    returning="job_type, request_id",
    counted="""
         , count(*) FILTER (WHERE job_type = 'sync') AS sync
         , count(*) FILTER (WHERE job_type = 'discover') AS discover
         , count(*) FILTER (WHERE job_type = 'verify') AS verify
         , count(*) FILTER (WHERE job_type = 'delete') AS delete
         , count(*) FILTER (WHERE job_type = 'patch') AS patch
         , count(*) FILTER (WHERE job_type = 'read') AS read
         , count(request_id) AS with_request""",
)


@sweeper(
    "jobs-recovery",
    needs={"sync_jobs": ("SELECT", "UPDATE")},
    settings=JobsRecovery,
    text=EventText(
        Severity.WARN,
        "stuck jobs marked expired",
        "recover stuck jobs failed",
        "flipped",
        detail="claim_expires_at past; agent likely crashed mid-execute",
    ),
    counts=("sync", "discover", "verify", "delete", "patch", "read", "with_request"),
)
def jobs_recovery(settings: JobsRecovery) -> PageScan:
    """Expire jobs whose claim ran out longer ago than the grace."""
    return PageScan(EXPIRE, older_than=settings.grace)
