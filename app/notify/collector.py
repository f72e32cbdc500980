"""Gauges read from PostgreSQL when they are scraped, so that every replica shows the same."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, LiteralString

import structlog
from prometheus_client.core import GaugeMetricFamily

from app.core.errors import describe
from app.notify.policy import BREAKER_FAILURES
from app.storage.transaction import bounded

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg_pool import ConnectionPool

#: Deliveries of one receiver and state that are counted; more count as so many. So a scrape has a bound.
MOST_COUNTED = 100_000

_READ: LiteralString = """
SELECT configured.name, open.number AS pending, dead.number AS dead,
       greatest(coalesce(extract(epoch FROM now() - open.oldest), 0), 0) AS oldest,
       CASE WHEN coalesce(failures, 0) < %(breaker_failures)s THEN 0
            WHEN rests_until > now() THEN 2 ELSE 1 END AS breaker,
       (off_fingerprint IS NOT NULL)::int AS off,
       coalesce(muted_at IS NOT NULL AND muted_until > now(), false)::int AS muted
  FROM unnest(%(targets)s::text[]) AS configured (name)
  LEFT JOIN secrets_bridge_worker.notification_target AS target USING (name)
 CROSS JOIN LATERAL (
       SELECT count(*) AS number, min(queued_at) AS oldest
         FROM (SELECT queued_at FROM secrets_bridge_worker.notification_delivery
                WHERE target = configured.name AND state IN ('pending', 'sending')
                ORDER BY id LIMIT %(most)s) AS counted) AS open
 CROSS JOIN LATERAL (
       SELECT count(*) AS number
         FROM (SELECT FROM secrets_bridge_worker.notification_delivery
                WHERE target = configured.name AND state = 'dead' LIMIT %(most)s) AS counted) AS dead
"""

_FAMILIES = (
    ("pending", "worker_notification_pending", "Deliveries that are not finished."),
    ("oldest", "worker_notification_oldest_pending_seconds", "Age of the oldest delivery that is not finished."),
    ("dead", "worker_notification_dead", f"Dead letters; {MOST_COUNTED} stands for more."),
    ("breaker", "worker_notification_breaker_state", "0 closed, 1 half open, 2 open."),
    ("off", "worker_notification_sink_off", "1 while a sink is switched off."),
    ("muted", "worker_notification_sink_muted", "1 while a sink is muted by hand: what is for it waits."),
)
_AGE = "worker_notification_gauges_age_seconds"


log = structlog.get_logger("notification")


class NotificationCollector:
    """A Prometheus collector of the gauges of these receivers."""

    def __init__(self, pool: ConnectionPool[Connection[Any]], targets: Sequence[str]) -> None:
        self._pool = pool
        self._targets = list(targets)
        self._rows: list[dict[str, Any]] = []
        self._read_at = -inf

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges; while they cannot be read those of before, so that no alert falls silent, and their age."""
        try:
            self._rows = self._read()
            self._read_at = time.monotonic()
        except Exception as error:  # noqa: BLE001 - it must not take all other metrics with it
            log.warning("gauges of notifications not read", **describe(error)._asdict())
        for column, name, meaning in _FAMILIES:
            family = GaugeMetricFamily(name, meaning, labels=["sink"])
            for row in self._rows:
                family.add_metric([row["name"]], float(row[column]))
            yield family
        age = time.monotonic() - self._read_at
        yield GaugeMetricFamily(_AGE, "Age of the gauges that are read from PostgreSQL; +Inf before the first.", age)

    def _read(self) -> list[dict[str, Any]]:
        with self._pool.connection(timeout=0.5) as connection, bounded(connection) as cursor:
            cursor.execute("SET LOCAL statement_timeout = '1s'")  # a scrape has a time-out of its own
            parameters = {"targets": self._targets, "breaker_failures": BREAKER_FAILURES, "most": MOST_COUNTED}
            return cursor.execute(_READ, parameters).fetchall()
