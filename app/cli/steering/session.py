"""A worker's parts in an operator's command: what one run by hand needs, and nothing that waits for ticks."""

from __future__ import annotations

import os
import queue
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Self

from dramatiq import Message

from app.cli.steering.operator import check_schema
from app.core import threads
from app.core.role import SINK_QUEUE
from app.notify.outbox import Outbox
from app.notify.routing import Router
from app.storage import postgres
from app.storage.redis import WaitingClient, check_shards, connect
from app.sweeping.lock import Locks
from app.sweeping.runner import Runner
from app.sweeping.streak import Telling
from app.worker.assembly import DELIVER
from app.worker.broker import Broker

if TYPE_CHECKING:
    from types import FrameType

    from app.worker.loading import Loaded

#: How long a call to Redis for a message may take; without an answer the relay sends it.
ANSWER_WITHIN = timedelta(seconds=3)


class Session:
    """One process that does runs by hand: pool, locks, runner, and the way to the notifiers. Raises BootError."""

    def __init__(self, loaded: Loaded) -> None:
        worker, store = loaded.worker, loaded.redis
        self.lease = worker.lease
        self.pool = postgres.pool(loaded.database, worker.lease / 2)
        self.client = connect(store, answer_within=min(timedelta(seconds=2), worker.lease / 5))
        self.locks = Locks(self.client, namespace=store.namespace, lease=worker.lease)
        self.stops = Stops(self.locks)
        self._broker = Broker(
            client=connect(store, answer_within=ANSWER_WITHIN),
            waiting=WaitingClient(store, ANSWER_WITHIN, connections=1),
            namespace=store.queue_namespace,
            middleware=[],
        )
        self.runner = Runner(
            self.pool,
            worker=f"{socket.gethostname()}:{os.getpid()}",
            lease=worker.lease,
            retention=worker.ledger_retention,
            outbox=Outbox(Router(loaded.targets), self._trigger),
            budget=worker.budget,
            most_pages=worker.pages,
            telling=Telling(loaded.notification.failures_before, loaded.notification.remind_after),
            stopping=lambda: self.stops.asked,
        )
        with postgres.connect(loaded.database) as connection:  # with a reason, should it not work
            check_schema(connection)
        check_shards(self.client)

    def __enter__(self) -> Self:
        self.pool.open()
        self.locks.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.locks.stop()
        self.pool.close()

    def _trigger(self, delivery: int) -> None:
        self._broker.declare_queue(SINK_QUEUE)
        self._broker.enqueue(Message(SINK_QUEUE, DELIVER, (delivery,), {}, {}))


class Stops:
    """Ctrl-C and SIGTERM: the first one ends the run after its step, the second one cuts that step."""

    def __init__(self, locks: Locks) -> None:
        self._locks = locks
        #: The number of the signal that came first.
        self.by: int | None = None
        #: Whether a step was cut.
        self.cut = False
        self._cuts: queue.SimpleQueue[None] = queue.SimpleQueue()  # the one that a handler may put something into

    @property
    def asked(self) -> bool:
        """Whether the run is to end."""
        return self.by is not None

    @property
    def status(self) -> int:
        """The exit status of a command that was stopped."""
        return 128 + (self.by or 0)

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listen to them while the body runs."""
        threads.start("cutter", self._cut_when_asked)
        before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self.by is not None and not self.cut:
            self.cut = True
            self._cuts.put(None)
        self.by = self.by or number

    def _cut_when_asked(self) -> None:
        # Not in the handler: the thread that it interrupts may hold what a cut waits for.
        self._cuts.get()
        for lease in self._locks.held:
            lease.cut()
