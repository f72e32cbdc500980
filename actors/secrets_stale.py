"""secrets-stale: flags secrets that no discovery has seen for long as missing; the next sighting flips them back."""

from app.core.config import variable
from app.core.events import Severity
from app.core.values import Cadence, PositiveDuration
from app.sweeping.scans.indexed_scan import IndexedScan
from app.sweeping.scans.keyset_scan import KeysetScan
from app.sweeping.scans.page_scan import PageScan
from app.sweeping.scans.sql import sweep_sql
from app.sweeping.scans.tables import Index
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


# The api's index on last_seen_at has those that are missing as well, the longest missing first.
INDEX = Index("secrets", "last_seen_at", "(status = 'present'::text)")

PAGES, KEYS = sweep_sql(
    "secrets",
    column="last_seen_at",
    still="status = 'present'",
    before="<",
    change="UPDATE secrets SET status = 'missing'",
)


@sweeper(
    "secrets-stale",
    needs={"secrets": ("SELECT", "UPDATE")},
    settings=SecretsStale,
    index=INDEX,
    due=lambda own: PAGES.due.older(own.stale_after),
    text=EventText(Severity.WARN, "discovered secrets marked missing", "mark stale secrets failed", "flipped"),
)
def secrets_stale(settings: SecretsStale) -> IndexedScan:
    """Flip secrets that were not seen for so long."""
    return IndexedScan(INDEX, KeysetScan(KEYS, settings.stale_after), PageScan(PAGES, settings.stale_after))
