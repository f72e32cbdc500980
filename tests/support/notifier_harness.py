"""A notifier without Dramatiq around it: what Redis would carry is in a list, and what is late is made due by SQL."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Self

from psycopg import Connection
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from app.core.errors import SinkRejected, SinkUnavailable
from app.core.events import Event
from app.notify.delivery.batch import Attempted, Batch
from app.notify.delivery.claim import claim
from app.notify.delivery.settle import Settlement, settle
from app.notify.notifier import Notifier, RetryLater
from app.notify.outbox import Outbox
from app.notify.routing import Router, Target
from app.notify.settings import NotificationSettings
from app.notify.transport import ThreadLoops


class NotifierHarness:
    """One notifier and one outbox, for the receivers it is given."""

    def __init__(self, pool: ConnectionPool[Connection[Any]], targets: Sequence[Target]) -> None:
        self.queue: deque[int] = deque()
        self.again: dict[int, timedelta] = {}
        self.pool = pool
        router = Router(targets)
        settings = NotificationSettings.read()
        self.outbox = Outbox(router, self.queue.append)
        self._loops = ThreadLoops(settings)
        self.notifier = Notifier(pool, router.targets, settings, self.outbox, self._loops)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loops.close()

    def tell(self, *events: Event) -> None:
        """Commit events, and trigger their deliveries."""
        with self.pool.connection() as connection, connection.transaction():
            written = self.outbox.write(connection.cursor(row_factory=dict_row), events)
        self.outbox.trigger(written)

    def claim(self, delivery: int) -> Batch | None:
        """Claim as a message for this delivery does."""
        with self.pool.connection() as connection:
            return claim(connection, delivery, self.notifier.targets, self.notifier.settings)

    def settle(self, batch: Batch, *errors: SinkRejected | SinkUnavailable | None) -> Settlement:
        """Settle a batch whose attempts have ended in these ways, or all in the same one."""
        ways = errors if len(errors) > 1 else errors * len(batch.deliveries)
        ended = [Attempted(delivery, error, 0.1) for delivery, error in zip(batch.deliveries, ways, strict=True)]
        settings = self.notifier.settings
        with self.pool.connection() as connection:
            return settle(connection, batch, ended, (), more=False, settings=settings, outbox=self.outbox)

    def give_back(self, batch: Batch) -> Settlement:
        """Settle a batch of which nothing was begun."""
        settings = self.notifier.settings
        with self.pool.connection() as connection:
            return settle(connection, batch, (), batch.deliveries, more=False, settings=settings, outbox=self.outbox)

    def work(self) -> Self:
        """Handle every message there is."""
        while self.queue:
            try:
                self.notifier.deliver(self.queue.popleft())
            except RetryLater as again:
                self.again |= again.waits
        return self

    def later(self, passed: timedelta) -> Self:
        """Let time pass in the tables, have the relay look, and handle what it found."""
        with self.pool.connection() as connection:
            for statement in _PASS:
                connection.execute(statement, {"passed": passed})
        self.notifier.relay()
        return self.work()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Every delivery, oldest first."""
        with self.pool.connection() as connection:
            return connection.cursor(row_factory=dict_row).execute(_ROWS).fetchall()

    @property
    def states(self) -> Counter[str]:
        """How many deliveries are in which state, and why."""
        return Counter(f"{row['state']} {row['reason']}".strip() for row in self.rows)


#: Opens a harness for the sinks that these variables configure.
Open = Callable[..., NotifierHarness]

_ROWS = """
SELECT delivery.*, event.title, event.kind, event.component, event.metadata
  FROM secrets_bridge_worker.notification_delivery AS delivery
  JOIN secrets_bridge_worker.notification_event AS event ON event.id = event_id ORDER BY delivery.id
"""
_PASS = (
    """
    UPDATE secrets_bridge_worker.notification_delivery
       SET due_at = due_at - %(passed)s, nudged_at = nudged_at - %(passed)s, queued_at = queued_at - %(passed)s,
           lease_until = lease_until - %(passed)s
    """,
    """
    UPDATE secrets_bridge_worker.notification_target
       SET rests_until = rests_until - %(passed)s, probe_until = probe_until - %(passed)s,
           paced_until = paced_until - %(passed)s, off_at = off_at - %(passed)s, off_until = off_until - %(passed)s,
           muted_at = muted_at - %(passed)s, muted_until = muted_until - %(passed)s
    """,
    "UPDATE secrets_bridge_worker.notification_hold SET until = until - %(passed)s",
)
