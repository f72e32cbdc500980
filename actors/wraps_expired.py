"""wraps-expired: deletes one-time secret wraps whose time is over, consumed or not.

The api answers 410 to who asks for a wrap that has expired, and 404 once it is deleted. What a reveal session names is
promised to be a 410 after the session's end, which takes a setting: those wraps alone are then kept for longer.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import LiteralString

import structlog

from app.core.config import variable
from app.core.events import Severity
from app.core.values import Cadence, Duration
from app.sweeping.scans.due import Due
from app.sweeping.scans.indexed_scan import IndexedScan
from app.sweeping.scans.keyset_scan import KeysetScan
from app.sweeping.scans.page_scan import PageScan
from app.sweeping.scans.scan import Scan
from app.sweeping.scans.sql import keyset_sql, sweep_sql
from app.sweeping.scans.tables import Index
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


INDEX = Index("secret_wraps", "expires_at")
#: What the api has: the wraps that can still be opened, once they expire.
UNCONSUMED = Index("secret_wraps", "expires_at", "(consumed_at IS NULL)")

DELETE = "DELETE FROM secret_wraps"
PAGES, KEYS = sweep_sql("secret_wraps", column="expires_at", change=DELETE)
FIRST = keyset_sql("secret_wraps", column="expires_at", still="consumed_at IS NULL", change=DELETE)

# A session that has not ended yet counts as well: it will have by the time that its wraps are asked for.
KEPT = """
SELECT DISTINCT wrap::text AS id FROM reveal_sessions, unnest(wrap_ids) AS wrap
 WHERE coalesce(expired_at, expires_at) > %(since)s AND wrap IS NOT NULL
"""
BUT_KEPT: LiteralString = "id NOT IN (SELECT unnest(%(kept)s::uuid[]))"
PAGES_BUT, KEYS_BUT = sweep_sql("secret_wraps", column="expires_at", still=BUT_KEPT, change=DELETE)
FIRST_BUT = keyset_sql("secret_wraps", column="expires_at", still=f"consumed_at IS NULL AND {BUT_KEPT}", change=DELETE)
NOT_KEPT: LiteralString = """id NOT IN (
       SELECT wrap FROM reveal_sessions, unnest(wrap_ids) AS wrap
        WHERE coalesce(expired_at, expires_at) > now() - %(retention)s AND wrap IS NOT NULL)"""
THERE = """
SELECT count(*) > 0 AS there, bool_and(has_column_privilege(attrelid, attnum, 'SELECT')) AS readable
  FROM pg_attribute
 WHERE attrelid = to_regclass('reveal_sessions') AND NOT attisdropped
   AND attname IN ('wrap_ids', 'expires_at', 'expired_at')
"""


def _due(own: WrapsExpired) -> Due:
    """Return what is due: not what a session keeps."""
    due = PAGES.due.older(own.retention)
    if not own.session_retention:
        return due
    kept: LiteralString = f"expires_at <= %(cutoff)s AND {NOT_KEPT}"
    return replace(due, condition=kept, words={"retention": own.session_retention})


class _Keeping(Scan):
    """Keeps the wraps that a session names which is open or has ended recently."""

    #: For how long after the end of the session.
    retention = timedelta(0)

    def _begin(self, run: Run) -> None:
        super()._begin(run)
        self.words["kept"] = []
        found = run.row(THERE)
        if found["there"] and not found["readable"]:
            log.warning("wraps of reveal sessions are not kept; `sb-worker check` has the GRANT", task="wraps-expired")
        elif found["there"]:
            self.words["kept"] = [row["id"] for row in run.rows(KEPT, since=run.now - self.retention)]


class _KeepingPages(_Keeping, PageScan):
    pass


class _KeepingKeys(_Keeping, KeysetScan):
    pass


@sweeper(
    "wraps-expired",
    needs={"secret_wraps": ("SELECT", "UPDATE", "DELETE")},
    uses={"reveal_sessions": ("SELECT",)},
    index=INDEX,
    due=_due,
    settings=WrapsExpired,
    text=EventText(Severity.INFO, "expired wraps purged", "delete expired wraps failed", "deleted"),
)
def wraps_expired(settings: WrapsExpired) -> IndexedScan:
    """Delete wraps that expired longer ago than the retention."""
    age = settings.retention
    if not settings.session_retention:
        keys, pages, first = KeysetScan(KEYS, age), PageScan(PAGES, age), KeysetScan(FIRST, age)
        return IndexedScan(INDEX, keys, pages, (UNCONSUMED, first))
    keys, pages, first = _KeepingKeys(KEYS_BUT, age), _KeepingPages(PAGES_BUT, age), _KeepingKeys(FIRST_BUT, age)
    keys.retention = pages.retention = first.retention = settings.session_retention
    return IndexedScan(INDEX, keys, pages, (UNCONSUMED, first))
