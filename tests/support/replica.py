"""A replica without Dramatiq around it: a runner, its locks, and the events that it published."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Self

import redis
from psycopg import Connection
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from app.core.errors import SweepFailed
from app.core.events import Event
from app.notify.outbox import Outbox, read_notification
from app.notify.routing import Router, targets
from app.sweeping.lock import Locks, Refusal, Tick
from app.sweeping.runner import RunFailed, Runner
from app.sweeping.sweeper import Sweep, Sweeper, SweeperSettings
from sinks.noop import Noop, noop
from tests.support.rights.acl import as_user

EVENTS = """
SELECT id AS event_id, created_at, kind, component, severity, title, detail, metadata::text, tallies::text
  FROM secrets_bridge_worker.notification_event ORDER BY created_at
"""


class Replica:
    """One replica's runner and locks, and the events that it published.

    Its lease and the time of its runs are long: how far a run comes must not depend on how busy the machine is. Its
    locks are renewed until the body of `with` is over.
    """

    def __init__(
        self, pool: ConnectionPool[Connection[Any]], client: redis.Redis, *, lease: timedelta, name: str = "test:1"
    ) -> None:
        """`client` is the test's own; locks are taken by the user of deploy/redis.acl."""
        self.redis = client
        self.locks = Locks(as_user(client), namespace="secrets-bridge", lease=lease)
        outbox = Outbox(Router(targets([noop], [Noop()])), trigger=lambda _delivery: None)
        self.runner = Runner(pool, name, lease, timedelta(days=7), outbox, budget=timedelta(hours=1))

    def __enter__(self) -> Self:
        self.locks.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.locks.stop()

    @property
    def events(self) -> list[Event]:
        """What the outbox has, oldest first."""
        with self.runner.pool.connection() as connection:
            found = connection.cursor(row_factory=dict_row).execute(EVENTS).fetchall()
        return [read_notification(row).event for row in found]

    def acquire(self, sweeper: Sweeper[Any], settings: SweeperSettings, slot: int | None = None) -> Tick | Refusal:
        """Take the lock as the middleware does."""
        return self.locks.acquire(sweeper.name, slot=slot, sent=None, interval=settings.tick)

    def run(self, sweeper: Sweeper[Any], settings: SweeperSettings, slot: int | None = None) -> Sweep:
        """Do one whole run: lock, sweep, release."""
        tick = self.acquire(sweeper, settings, slot)
        assert isinstance(tick, Tick), tick
        try:
            state = self.runner.run(sweeper, settings, tick)
        except RunFailed as error:
            self.locks.release(tick, done=False)
            error.write_down()
            raise
        except BaseException:
            self.locks.release(tick, done=False)
            raise
        self.locks.release(tick, done=True)
        return state.sweep

    def next_slot(self) -> None:
        """Have the slots that were run be older than they are, so that the next run finds a new one."""
        with self.runner.pool.connection() as connection:
            connection.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = last_slot - interval '1 h'")
            connection.execute(
                "UPDATE secrets_bridge_worker.sweep_run SET slot = slot - id * interval '1 h'"
                " WHERE slot > now() - interval '30 min'"
            )
        for key in self.redis.scan_iter("*:tick"):
            self.redis.delete(key)

    def fails(self, sweeper: Sweeper[Any], settings: SweeperSettings, slot: int | None = None) -> SweepFailed:
        """Do one whole run that must fail."""
        try:
            self.run(sweeper, settings, slot)
        except SweepFailed as error:
            return error
        raise AssertionError("the run did not fail")
