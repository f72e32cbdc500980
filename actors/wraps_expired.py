"""wraps-expired: deletes one-time secret wraps whose time is over, consumed or not.

The api answers 410 to who asks for a wrap that has expired, and 404 once it is deleted. What a reveal session names is
promised to be a 410 after the session's end, which takes a setting: those wraps alone are then kept for longer.
"""

from collections.abc import Mapping

import structlog

from app.core.config import variable
from app.core.events import Severity
from app.core.values import Cadence, Duration
from app.sweeping.page_scan import PageScan
from app.sweeping.scan_sql import page_sql
from app.sweeping.strategy import Run
from app.sweeping.sweeper import EventText, SweeperSettings, sweeper

log = structlog.get_logger("sweep")


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
    session_retention: Duration = variable(
        "SB_SWEEP_WRAPS_SESSION_RETENTION",
        default="0s",
        meaning="how long after the end of a reveal session its expired wraps are kept, for the same answer",
    )

    @property
    def hints(self) -> Mapping[str, str]:
        """What an hour of retention buys where there are sessions."""
        text = (
            "SB_SWEEP_WRAPS_SESSION_RETENTION=1h would keep expired wraps of a reveal session for an hour after its "
            "end: who asks for one is told 410 gone, as the api promises, and not 404"
        )
        return {} if self.session_retention else {"reveal_sessions": text}


DELETE = page_sql("secret_wraps", due="expires_at + interval '0' <= %(cutoff)s", change="DELETE FROM secret_wraps")

# A session that has not ended yet counts as well: it will have by the time that its wraps are asked for.
KEPT = """
SELECT DISTINCT wrap::text AS id FROM reveal_sessions, unnest(wrap_ids) AS wrap
 WHERE coalesce(expired_at, expires_at) > %(since)s AND wrap IS NOT NULL
"""
BUT_KEPT = page_sql(
    "secret_wraps",
    due="expires_at + interval '0' <= %(cutoff)s AND id NOT IN (SELECT unnest(%(kept)s::uuid[]))",
    change="DELETE FROM secret_wraps",
)
THERE = """
SELECT count(*) > 0 AS there, bool_and(has_column_privilege(attrelid, attnum, 'SELECT')) AS readable
  FROM pg_attribute
 WHERE attrelid = to_regclass('reveal_sessions') AND NOT attisdropped
   AND attname IN ('wrap_ids', 'expires_at', 'expired_at')
"""


class _ButThoseOfSessions(PageScan):
    """Deletes expired wraps, but not those that a session names which is open or has ended recently."""

    def __init__(self, settings: WrapsExpired) -> None:
        super().__init__(DELETE, older_than=settings.retention)
        self._retention = settings.session_retention
        self._kept: list[str] = []

    def _begin(self, run: Run) -> None:
        super()._begin(run)
        found = run.row(THERE)
        if found["there"] and not found["readable"]:
            log.warning("wraps of reveal sessions are not kept; `sb-worker check` has the GRANT", task="wraps-expired")
        elif found["there"]:
            self._kept = [row["id"] for row in run.rows(KEPT, since=run.now - self._retention)]
        self.use(BUT_KEPT if self._kept else DELETE)

    def _words(self, start: str, stop: str) -> dict[str, object]:
        return {**super()._words(start, stop), "kept": self._kept}


@sweeper(
    "wraps-expired",
    needs={"secret_wraps": ("SELECT", "UPDATE", "DELETE")},
    uses={"reveal_sessions": ("SELECT",)},
    settings=WrapsExpired,
    text=EventText(Severity.INFO, "expired wraps purged", "delete expired wraps failed", "deleted"),
)
def wraps_expired(settings: WrapsExpired) -> PageScan:
    """Delete wraps that expired longer ago than the retention."""
    if settings.session_retention:
        return _ButThoseOfSessions(settings)
    return PageScan(DELETE, older_than=settings.retention)
