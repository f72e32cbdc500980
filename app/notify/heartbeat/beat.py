"""One look at the ledger, and one GET if there is a good run that the switch has not been told of.

It is told by a notifier, on a tick: so it hears nothing when sweeps, PostgreSQL, Redis, all schedulers or all notifiers
are gone. Nothing is made up for: of many runs it hears once, and of one that is old by now never.
"""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import structlog
from psycopg_pool import PoolTimeout

from app.core import metrics
from app.core.errors import SinkRejected, SinkUnavailable, describe
from app.notify.delivery.send import within
from app.notify.sink import TRANSIENT, judge
from app.storage.postgres import only_row
from app.storage.transaction import bounded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import Connection
    from psycopg_pool import ConnectionPool

    from app.notify.heartbeat.settings import HeartbeatSettings
    from app.notify.notifier import Run
    from app.notify.sink import Transport

log = structlog.get_logger("notification")

#: How often the ledger is looked at, and so the shortest time between two GETs: services take a few a minute.
LOOK_EVERY = timedelta(seconds=15)
#: A run that ended longer ago says nothing about now. Until then a GET that failed is tried again with each look.
FRESH = timedelta(minutes=1)
#: Bounds what is read of the ledger: longer than any run.
LONGEST_RUN = timedelta(hours=1)

NEWEST: LiteralString = """
SELECT max(finished_at) AS run_at FROM secrets_bridge_worker.sweep_run
 WHERE name = ANY (%(sweepers)s) AND outcome = 'success' AND started_at > now() - %(longest)s
   AND finished_at BETWEEN now() - %(fresh)s AND now()
   AND NOT EXISTS (SELECT FROM secrets_bridge_worker.heartbeat WHERE run_at BETWEEN finished_at AND now())
"""

TELL: LiteralString = """
INSERT INTO secrets_bridge_worker.heartbeat (run_at) VALUES (%(run_at)s)
    ON CONFLICT (only_row) DO UPDATE SET run_at = excluded.run_at
"""


class Heartbeat:
    """What one process does about it."""

    def __init__(
        self,
        pool: ConnectionPool[Connection[Any]],
        settings: HeartbeatSettings,
        sweepers: Sequence[str],
        timeout: timedelta,
        run: Run,
    ) -> None:
        """`sweepers` are those whose runs count, `timeout` bounds the whole of one GET."""
        self._pool = pool
        self._settings = settings
        self._sweepers = list(sweepers)
        self._timeout = timeout
        self._run = run
        self._under_way = threading.Lock()
        self._failing = False

    def beat(self) -> bool:
        """Look once, unless another look is under way here. Return whether PostgreSQL was there."""
        if not self._under_way.acquire(blocking=False):
            return True
        try:
            if (run_at := self._newest()) is not None and self._get():
                self._write_down(run_at)
        except (psycopg.Error, PoolTimeout) as error:
            log.warning("heartbeat put off, PostgreSQL is away", **describe(error)._asdict())
            return False
        finally:
            self._under_way.release()
        return True

    def _newest(self) -> datetime | None:
        query = {"sweepers": self._sweepers, "longest": LONGEST_RUN, "fresh": FRESH}
        with self._pool.connection() as connection, bounded(connection) as cursor:
            run_at: datetime | None = only_row(cursor.execute(NEWEST, query))["run_at"]
            return run_at

    def _write_down(self, run_at: datetime) -> None:
        with self._pool.connection() as connection, bounded(connection) as cursor:
            cursor.execute(TELL, {"run_at": run_at})

    def _get(self) -> bool:
        """Send one GET and return whether it got through; the first of several that fail is logged, and their end."""
        error: SinkRejected | SinkUnavailable | None = None

        async def get(transport: Transport) -> None:
            nonlocal error
            try:
                await within(self._timeout.total_seconds(), self._sent(transport), "heartbeat")
            except (SinkRejected, SinkUnavailable) as failed:
                error = failed

        self._run(get)
        metrics.HEARTBEATS.labels("success" if error is None else "failure").inc()
        if error is not None and not self._failing:
            log.warning("heartbeat failed", reason=error.fault, code=error.code)
        elif error is None and self._failing:
            log.info("heartbeat gets through again")
        self._failing = error is not None
        return error is None

    async def _sent(self, transport: Transport) -> None:
        assert self._settings.url is not None
        judge(await transport.get(self._settings.url), transport.now, TRANSIENT)
