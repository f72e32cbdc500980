"""sessions-expired: deletes login sessions that are past their absolute end, which nothing can log in with again.

Off unless its interval is set: until then the api's audit may still look up whose session it was.
"""

from app.core.config import variable
from app.core.events import Severity
from app.core.values import Cadence
from app.sweeping.strategies import KeysetScan
from app.sweeping.sweeper import EventText, SweeperSettings, sweeper


class SessionsExpired(SweeperSettings):
    """Whether and when sessions are deleted."""

    interval: Cadence = variable(
        "SB_SWEEP_SESSIONS_INTERVAL",
        default="1h",
        documented="unset",
        meaning="how often expired login sessions are deleted; unset: never",
    )

    @property
    def enabled(self) -> bool:
        """Only where the interval is set."""
        return "interval" in self.model_fields_set

    @property
    def switch(self) -> str:
        """The interval."""
        return "SB_SWEEP_SESSIONS_INTERVAL"


DELETE = """
WITH due AS MATERIALIZED (
    SELECT id, expires_at FROM sessions
     WHERE expires_at >= %(after)s::timestamptz AND expires_at <= %(cutoff)s
     ORDER BY expires_at, id
    OFFSET %(skip)s
     LIMIT %(limit)s
), held AS MATERIALIZED (
    SELECT id FROM sessions
     WHERE NOT %(look)s AND id = ANY (ARRAY(SELECT id FROM due)) AND expires_at <= %(cutoff)s
       FOR UPDATE SKIP LOCKED
), deleted AS (
    DELETE FROM sessions WHERE id = ANY (ARRAY(SELECT id FROM held)) AND expires_at <= %(cutoff)s
 RETURNING 1
)
SELECT count(*) AS found, max(expires_at)::text AS last, (SELECT count(*) FROM deleted) AS changed,
       greatest(count(*) - (SELECT count(*) FROM held), 0) AS skipped_locked
  FROM due
"""


@sweeper(
    "sessions-expired",
    needs={"sessions.expires_at": ("SELECT", "UPDATE", "DELETE")},
    settings=SessionsExpired,
    text=EventText(Severity.INFO, "expired sessions deleted", "delete expired sessions failed", "deleted"),
)
def sessions_expired(_settings: SessionsExpired) -> KeysetScan:
    """Delete sessions that are over, the oldest first."""
    return KeysetScan(DELETE)
