"""secrets-stale: flags secrets that no discovery has seen for long as missing; the next sighting flips them back."""

from app.core.config import variable
from app.core.events import Severity
from app.core.values import Cadence, PositiveDuration
from app.sweeping.page_scan import PageScan
from app.sweeping.scan_sql import page_sql
from app.sweeping.sweeper import EventText, SweeperSettings, sweeper


class SecretsStale(SweeperSettings):
    """When a secret counts as missing."""

    interval: Cadence = variable(
        "SB_SWEEP_SECRETS_INTERVAL",
        "SB_WORKER_SECRETS_STALE_INTERVAL",
        default="5m",
        meaning="how often unseen secrets are looked for",
    )
    stale_after: PositiveDuration = variable(
        "SB_SWEEP_SECRETS_STALE_AFTER",
        "SB_WORKER_SECRETS_STALE_AFTER",
        default="24h",
        meaning="time without a sighting after which a secret is missing; about three discovery intervals is wise",
    )


FLIP = page_sql(
    "secrets",
    due="status || '' = 'present' AND last_seen_at + interval '0' < %(cutoff)s",
    change="UPDATE secrets SET status = 'missing'",
)


@sweeper(
    "secrets-stale",
    needs={"secrets": ("SELECT", "UPDATE")},
    settings=SecretsStale,
    text=EventText(Severity.WARN, "discovered secrets marked missing", "mark stale secrets failed", "flipped"),
)
def secrets_stale(settings: SecretsStale) -> PageScan:
    """Flip secrets that were not seen for so long."""
    return PageScan(FLIP, older_than=settings.stale_after)
