"""The gauges of the whole deployment: the same in every replica, since all of them read the same rows.

They are read by `FleetWatch`, not when they are scraped. While PostgreSQL is away they keep their last values, so that
no alert falls silent; how long a run has been owed, and how old all of this is, goes on rising.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily

from app.overview.problems.fleet import disagree
from app.overview.sources.standings import Standing
from app.overview.watch import FleetWatch, Seen


class FleetGauges:
    """A Prometheus collector of what a watch has seen."""

    def __init__(self, watch: FleetWatch) -> None:
        self._watch = watch

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges."""
        seen, now = self._watch.seen, time.monotonic()
        yield from self._of_sweepers(seen, now)
        yield from _of_processes(seen, now)
        text = "Age of the gauges that are read from PostgreSQL; +Inf before the first."
        yield GaugeMetricFamily("worker_fleet_gauges_age_seconds", text, now - seen.at)

    def _of_sweepers(self, seen: Seen, now: float) -> Iterator[GaugeMetricFamily]:
        names, known = [one.name for one in self._watch.watched], seen.standings
        yield _family(
            "worker_sweep_overdue_seconds",
            "How far the newest run of any replica is behind what the cadence asks; 0 while it is paused or rests.",
            {name: self._watch.behind(name) for name in names},
        )
        yield _family(
            "worker_sweep_last_success_timestamp_seconds",
            "When a run of any replica that ended well began, Unix time by PostgreSQL; absent if none ever did.",
            {name: one.last_success.timestamp() for name, one in known.items() if one.last_success},
        )
        yield _family(
            "worker_sweep_failures",
            "Failed attempts in a row.",
            {name: float(one.failures) for name, one in known.items()},
        )
        yield _family(
            "worker_sweep_paused_seconds",
            "For how long it has been paused; 0 while it is not.",
            {name: _paused_for(one) for name, one in known.items()},
        )
        yield _family(
            "worker_sweep_braked",
            "1 while it waits for somebody's approval, having changed nothing.",
            {name: float(one.braked_for is not None) for name, one in known.items()},
        )
        yield _family(
            "worker_sweep_lock_foreign_seconds",
            "How long the lock of an overdue sweeper has been held by somebody who is no run of ours; else 0.",
            {name: now - seen.foreign[name] if name in seen.foreign else 0.0 for name in names},
        )
        yield _family(
            "worker_sweep_cadence_conflict",
            "1 while living processes mean to run it at different cadences, or not all of them at all.",
            {name: float(disagree(name, seen.fleet)) for name in names},
        )
        yield _family(
            "worker_sweep_backlog_rows",
            "Rows that are due and not swept, 10000 at most; absent where that is not cheaply counted.",
            {name: float(backlog.rows) for name, backlog in seen.backlogs.items()},
        )
        yield _family("worker_sweep_expiry_lag_seconds", "For how long the oldest of them is due.", _lags(seen))


def _paused_for(one: Standing) -> float:
    return max(0.0, (one.now - one.paused_at).total_seconds()) if one.paused_at else 0.0


def _lags(seen: Seen) -> dict[str, float]:
    return {
        name: max(0.0, (seen.counted_at - backlog.since).total_seconds()) if seen.counted_at and backlog.since else 0.0
        for name, backlog in seen.backlogs.items()
    }


def _of_processes(seen: Seen, now: float) -> Iterator[GaugeMetricFamily]:
    """Yield what signs of life tell. A process that sweeps and notifies counts as a worker and as a notifier."""
    fleet = seen.fleet
    of_kind = {
        "scheduler": [one for one in fleet if one.schedules],
        "worker": [one for one in fleet if one.sweeps],
        "notifier": [one for one in fleet if one.notifies],
    }
    alive = GaugeMetricFamily(
        "worker_processes_alive", "Processes that gave a sign of life within 15 s, by what they do.", labels=["kind"]
    )
    skew = GaugeMetricFamily(
        "worker_processes_clock_skew_seconds",
        "The largest difference of a living process's clock from PostgreSQL's.",
        labels=["kind"],
    )
    for kind, members in of_kind.items():
        alive.add_metric([kind], float(len(members)))
        if members:
            skew.add_metric([kind], max(abs(one.clock_ahead).total_seconds() for one in members))
    yield alive
    yield skew
    text = "Since a scheduler last sent a tick, by signs of life; +Inf if none ever did."
    yield GaugeMetricFamily("worker_scheduler_tick_age_seconds", text, now - seen.ticked_at)


def _family(name: str, meaning: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, meaning, labels=["task"])
    for task, value in values.items():
        family.add_metric([task], value)
    return family
