"""gitops-timeout: gives up on observations whose time is over, applied or not: nobody could verify it.

The one sweep that an index of the api serves in full, so it does not walk the table.
"""

from collections.abc import Mapping

from app.core.config import variable
from app.core.events import Severity
from app.core.values import Cadence
from app.gitops.settings import GitopsSettings
from app.sweeping.batch import Batch
from app.sweeping.sweeper import Wording, sweeper


class GitopsTimeout(GitopsSettings):
    """When observations are looked at."""

    interval: Cadence = variable(
        "SB_SWEEP_GITOPS_TIMEOUT_INTERVAL",
        "SB_WORKER_GITOPS_TIMEOUT_INTERVAL",
        default="60s",
        meaning="how often observations that have timed out are looked for",
    )


# What the poller is writing at this moment is skipped: it may just be landing, and the next run sees it if not.
GIVE_UP = """
WITH late AS MATERIALIZED (
    SELECT id, timeout_at FROM gitops_observations
     WHERE polling_state IN ('queued', 'active')
       AND timeout_at >= %(after)s::timestamptz AND timeout_at < %(cutoff)s
     ORDER BY timeout_at
     LIMIT %(limit)s
       FOR UPDATE SKIP LOCKED
), flipped AS (
    UPDATE gitops_observations AS o
       SET polling_state = 'applied_unverified', terminal_at = now()
      FROM late
     WHERE o.id = late.id AND o.polling_state IN ('queued', 'active')
 RETURNING 1
)
SELECT count(*) AS found, max(timeout_at) AS last, (SELECT count(*) FROM flipped) AS changed
  FROM late
"""


@sweeper(
    "gitops-timeout",
    needs={"gitops_observations": ("SELECT", "UPDATE")},
    settings=GitopsTimeout,
    wording=Wording(
        Severity.WARN,
        "gitops observations timed out",
        "find timed-out gitops observations failed",
        "flipped",
        detail="flipped {changed} row(s) to applied_unverified",
    ),
)
def gitops_timeout(batch: Batch[GitopsTimeout]) -> Mapping[str, int]:
    """Give up on one batch, the oldest first."""
    return batch.drain(GIVE_UP)
