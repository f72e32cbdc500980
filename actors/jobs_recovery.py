"""jobs-recovery: expires jobs whose claim ran out, most likely because the agent died while it executed them.

The api gives such a job to another agent as well when one asks; the grace leaves it the time to. A job that is
expired is never picked up again, and its parent request stays open: those are counted as `with_request`.
"""

from app.core.config import variable
from app.core.events import Severity
from app.core.values import Cadence, Duration
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


# The sum of nothing keeps the planner off every index: with old statistics it would read a whole one for every range
# of pages, and never come to their end.
EXPIRE = """
WITH due AS MATERIALIZED (
    SELECT ctid FROM sync_jobs
     WHERE ctid >= %(start)s::tid AND ctid < %(stop)s::tid
       AND status || '' = 'claimed' AND claim_expires_at + interval '0' < %(cutoff)s
     LIMIT %(limit)s
), held AS MATERIALIZED (
    SELECT ctid FROM sync_jobs
     WHERE NOT %(look)s AND ctid = ANY (ARRAY(SELECT ctid FROM due))
       AND status || '' = 'claimed' AND claim_expires_at + interval '0' < %(cutoff)s
       FOR NO KEY UPDATE SKIP LOCKED
), expired AS (
    UPDATE sync_jobs SET status = 'expired'
     WHERE ctid = ANY (ARRAY(SELECT ctid FROM held))
       AND status || '' = 'claimed' AND claim_expires_at + interval '0' < %(cutoff)s
 RETURNING job_type, request_id
)
SELECT (SELECT count(*) FROM due) AS found,
       (SELECT max(ctid)::text FROM due) AS last,
       greatest((SELECT count(*) FROM due) - (SELECT count(*) FROM held), 0) AS skipped_locked,
       count(*) AS changed,
       count(*) FILTER (WHERE job_type = 'sync') AS sync,
       count(*) FILTER (WHERE job_type = 'discover') AS discover,
       count(*) FILTER (WHERE job_type = 'verify') AS verify,
       count(*) FILTER (WHERE job_type = 'delete') AS delete,
       count(*) FILTER (WHERE job_type = 'patch') AS patch,
       count(*) FILTER (WHERE job_type = 'read') AS read,
       count(request_id) AS with_request
  FROM expired
"""


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
