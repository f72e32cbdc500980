"""sessions-expired: deletes login sessions that are past their absolute end, which nothing can log in with again.

Off unless its interval is set: until then the api's audit may still look up whose session it was.
"""

from app.core.config import variable
from app.core.events import Severity
from app.core.values import Cadence
from app.sweeping.scans.keyset_scan import KeysetScan
from app.sweeping.scans.sql import keyset_sql
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


DELETE = keyset_sql("sessions", column="expires_at", change="DELETE FROM sessions")


@sweeper(
    "sessions-expired",
    needs={"sessions.expires_at": ("SELECT", "UPDATE", "DELETE")},
    settings=SessionsExpired,
    due=lambda _own: DELETE.due,
    text=EventText(Severity.INFO, "expired sessions deleted", "delete expired sessions failed", "deleted"),
)
def sessions_expired(_settings: SessionsExpired) -> KeysetScan:
    """Delete sessions that are over, the oldest first."""
    return KeysetScan(DELETE)
