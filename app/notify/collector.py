"""Gauges read from PostgreSQL when they are scraped, so that every replica shows the same and none shows the past."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import PoolTimeout

from app.core import metrics  # noqa: F401 - first: it prepares what the import of prometheus_client below reads
from app.notify.policy import BREAKER_FAILURES

from prometheus_client.core import GaugeMetricFamily  # isort: skip

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg_pool import ConnectionPool

_READ: LiteralString = """
SELECT configured.name,
       count(*) FILTER (WHERE state IN ('pending', 'sending')) AS pending,
       count(*) FILTER (WHERE state = 'dead') AS dead,
       coalesce(extract(epoch FROM now() - min(queued_at) FILTER (WHERE state IN ('pending', 'sending'))), 0) AS oldest,
       CASE WHEN coalesce(failures, 0) < %(breaker_failures)s THEN 0
            WHEN rests_until > now() THEN 2 ELSE 1 END AS breaker,
       (off_fingerprint IS NOT NULL)::int AS off
  FROM unnest(%(targets)s::text[]) AS configured (name)
  LEFT JOIN secrets_bridge_worker.notification_target AS target USING (name)
  LEFT JOIN secrets_bridge_worker.notification_delivery AS delivery
    ON delivery.target = configured.name AND state IN ('pending', 'sending', 'dead')
 GROUP BY configured.name, failures, rests_until, off_fingerprint
"""

_FAMILIES = (
    ("pending", "worker_notification_pending", "Deliveries that are not finished."),
    ("oldest", "worker_notification_oldest_pending_seconds", "Age of the oldest delivery that is not finished."),
    ("dead", "worker_notification_dead", "Dead letters."),
    ("breaker", "worker_notification_breaker_state", "0 closed, 1 half open, 2 open."),
    ("off", "worker_notification_sink_off", "1 while a sink is switched off until its configuration changes."),
)


class NotificationCollector:
    """A Prometheus collector of the gauges of these receivers."""

    def __init__(self, pool: ConnectionPool[Connection[Any]], targets: Sequence[str]) -> None:
        self._pool = pool
        self._targets = list(targets)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges, without samples while PostgreSQL is away: an old number would look like a new one."""
        try:
            rows = self._read()
        except (psycopg.Error, PoolTimeout):
            rows = []
        for column, name, meaning in _FAMILIES:
            family = GaugeMetricFamily(name, meaning, labels=["sink"])
            for row in rows:
                family.add_metric([row["name"]], float(row[column]))
            yield family

    def _read(self) -> Iterable[dict[str, Any]]:
        with self._pool.connection(timeout=0.5) as connection, connection.transaction():
            cursor = connection.cursor(row_factory=dict_row)
            cursor.execute("SET LOCAL statement_timeout = '1s'")
            parameters = {"targets": self._targets, "breaker_failures": BREAKER_FAILURES}
            return cursor.execute(_READ, parameters).fetchall()
