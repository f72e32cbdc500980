"""What rules, dashboard and runbooks name and the code does not have yet: emptied when it has."""

from __future__ import annotations

METRICS = frozenset(
    {
        "worker_sweep_backlog_rows",
        "worker_sweep_expiry_lag_seconds",
        "worker_sweep_failures",
        "worker_sweep_paused_seconds",
        "worker_sweep_braked",  # is there; pending is that what a brake holds is not overdue
        "worker_sweep_lock_foreign_seconds",
        "worker_sweep_cadence_conflict",
        "worker_processes_alive",
        "worker_scheduler_tick_age_seconds",
        "worker_processes_clock_skew_seconds",
        "worker_fleet_gauges_age_seconds",
    }
)
COMMANDS = frozenset({"why"})
