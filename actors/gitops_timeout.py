"""gitops-timeout: gives up on observations whose time is over, applied or not: nobody could verify it.

The one sweep that an index of the api serves in full, so it scans the index and not the table.
"""

from app.core.config import variable
from app.core.events import Severity
from app.core.values import Cadence
from app.gitops.settings import GitopsSettings
from app.sweeping.scans.keyset_scan import KeysetScan
from app.sweeping.scans.sql import keyset_sql
from app.sweeping.sweeper import EventText, sweeper


class GitopsTimeout(GitopsSettings):
    """When observations are looked at."""

    interval: Cadence = variable(
        "SB_SWEEP_GITOPS_TIMEOUT_INTERVAL",
        "SB_WORKER_GITOPS_TIMEOUT_INTERVAL",
        default="60s",
        meaning="how often observations that have timed out are looked for",
    )


# What the poller is writing at this moment is skipped: it may just be landing, and the next run sees it if not.
GIVE_UP = keyset_sql(
    "gitops_observations",
    column="timeout_at",
    still="polling_state IN ('queued', 'active')",
    before="<",
    change="UPDATE gitops_observations SET polling_state = 'applied_unverified', terminal_at = now()",
)


@sweeper(
    "gitops-timeout",
    needs={"gitops_observations": ("SELECT", "UPDATE")},
    settings=GitopsTimeout,
    due=lambda _own: GIVE_UP.due,
    text=EventText(
        Severity.WARN,
        "gitops observations timed out",
        "find timed-out gitops observations failed",
        "flipped",
        detail="flipped {changed} row(s) to applied_unverified",
    ),
)
def gitops_timeout(_settings: GitopsTimeout) -> KeysetScan:
    """End observations that are past their time, the oldest first."""
    return KeysetScan(GIVE_UP)
