"""The sweepers, one module each, and the list of them: a new one is one file and one line."""

from typing import Any

from actors import (
    agents_stale,
    discover_scheduler,
    gitops_poller,
    gitops_timeout,
    jobs_recovery,
    secrets_stale,
    wraps_expired,
)
from app.sweeping.sweeper import Sweeper

SWEEPERS: tuple[Sweeper[Any], ...] = (
    wraps_expired.wraps_expired,
    secrets_stale.secrets_stale,
    agents_stale.agents_stale,
    jobs_recovery.jobs_recovery,
    discover_scheduler.discover_scheduler,
    gitops_poller.gitops_poller,
    gitops_timeout.gitops_timeout,
)
