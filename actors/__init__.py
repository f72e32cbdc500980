"""The sweepers, one module each, and the list of them: a new one is one file and one line."""

from typing import Any

from actors import (
    agents_stale,
    cross_team_fill_window_expired,
    discover_scheduler,
    discover_stuck,
    gitops_poller,
    gitops_timeout,
    jobs_recovery,
    reveal_sessions_expired,
    secrets_stale,
    sessions_expired,
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
    reveal_sessions_expired.reveal_sessions_expired,
    cross_team_fill_window_expired.cross_team_fill_window_expired,
    discover_stuck.discover_stuck,
    sessions_expired.sessions_expired,
)
