"""A replica whose runs stop at gates: the real lock, runner, actor, and run by hand; the sweeper is the test's own.

Gates: `begin` (the lock is held, nothing is claimed), `step` (in the transaction, after its claim or fence), `wait`
(between two transactions), `release` (the run is over, the lock is not released), `freed` (it is released, the failure
is not written down).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import redis as redis_py
from psycopg import Connection
from psycopg_pool import ConnectionPool

from app.core.errors import WorkerError
from app.core.events import Severity
from app.notify.outbox import Outbox
from app.notify.routing import Router, targets
from app.sweeping import by_hand, lock
from app.sweeping.actor import RetryRun, SweepActor
from app.sweeping.lock import Locks, Refusal, Tick
from app.sweeping.runner import Runner
from app.sweeping.schedule import Slot
from app.sweeping.steering.order import Order
from app.sweeping.strategy import Run, Step, Strategy
from app.sweeping.sweeper import EventText, Sweeper, SweeperSettings
from app.worker.middleware.lock import SweepLock
from sinks.noop import Noop, noop
from tests.model.abstract.world import INTERVAL
from tests.model.stepped.gates import Gated

NAME = "modelled"
#: Longer than any test: no lock or limit runs out by itself.
LEASE = timedelta(hours=2)
WORK = "INSERT INTO work (worker) VALUES (%(worker)s)"


class Settings(SweeperSettings):
    """The cadence of the model."""

    interval: timedelta = timedelta(microseconds=INTERVAL)


class Broken(Exception):
    """The fault that a test has ordered."""


class Answers(Exception):
    """A commit was done, and its answer is lost."""


class _Gates:
    """Where the run of a thread stops."""

    def __init__(self) -> None:
        self.thread: Gated | None = None
        self.unheard = self.begun = False

    def stop(self, gate: str) -> str:
        assert self.thread is not None
        return self.thread.stop(gate)


class _Directed(Strategy):
    """A strategy that changes one row a step, and ends or fails as it is told."""

    def __init__(self, gates: _Gates, worker: str) -> None:
        self._gates = gates
        self._worker = worker
        if not gates.begun:  # else it is a run by hand that tries its claim once more
            gates.begun = True
            if gates.stop("begin") == "fail":
                raise Broken

    def step(self, run: Run, *, over: bool) -> Step:
        del over
        word = self._gates.stop("step")
        if word == "fail":
            raise Broken
        self._gates.unheard = word.endswith("unheard")
        if word.startswith("end"):
            return Step({}, last=True)
        run.cursor.execute(WORK, {"worker": self._worker})
        return Step({"changed": 1}, last=word.startswith("last"))

    def wait(self, stopping: Callable[[], bool]) -> None:
        del stopping
        if self._gates.stop("wait") == "fail":
            raise Broken


class _GatedLocks(Locks):
    """Locks that stop at a gate before they are released, and after one that was not done."""

    gates: _Gates

    def release(self, tick: Tick, *, done: bool, claimed: Slot | None = None) -> None:
        self.gates.stop("release, done" if done else "release, not done")
        super().release(tick, done=done, claimed=claimed)
        if not done:
            self.gates.stop("freed")


class SteppedReplica:
    """One replica. It does one run at a time, on a thread of its own."""

    def __init__(
        self, number: int, pool: ConnectionPool[Connection[Any]], client: redis_py.Redis, changed: threading.Condition
    ) -> None:
        self._changed = changed
        self._gates = _Gates()
        self.locks = _GatedLocks(client, namespace="model", lease=LEASE)
        self.locks.gates = self._gates
        outbox = Outbox(Router(targets([noop], [Noop()])), trigger=lambda _delivery: None)
        worker = f"replica:{number}"
        self.runner = Runner(
            pool, worker, LEASE, timedelta(days=7), outbox, budget=timedelta(hours=1), on_batch=self._committed
        )
        text = EventText(Severity.INFO, "rows changed", "the sweep failed", "rows")
        self.sweeper: Sweeper[Any] = Sweeper(
            NAME, {"work": ("INSERT",)}, Settings, text, lambda _settings: _Directed(self._gates, worker)
        )
        self.settings = Settings()
        self._actor = SweepActor(self.runner, self.sweeper, self.settings)
        self._middleware = SweepLock(self.locks)
        self.tick: Tick | None = None

    @property
    def thread(self) -> Gated | None:
        """The thread of the run that is under way."""
        return self._gates.thread

    @property
    def gate(self) -> str | None:
        """Where its run stands; None while it is idle, or waits in PostgreSQL."""
        return self.thread.gate if self.thread else None

    def acquire(self, slot: Slot) -> bool:
        """Take the lock for a tick, and begin; return whether it was given."""
        answer = self.locks.acquire(NAME, slot=slot, sent=None, interval=self.settings.tick)
        return not isinstance(answer, Refusal) and self._begin(answer, self._run_tick)

    def acquire_by_hand(self, *, despite_pause: bool = False) -> bool:
        """Take the lock for a run by hand, and begin; return whether it was given."""
        tick = by_hand.acquire(
            self.locks,
            self.sweeper,
            self.settings,
            Order("operator@desk", despite_pause=despite_pause),
            wait=timedelta(0),
            on_held=lambda: None,
            stopping=lambda: True,
        )
        return tick is not None and self._begin(tick, self._run_by_hand)

    def lose(self) -> None:
        """Renew the lock, as the keeper does, and so find out that it is gone."""
        assert self.tick is not None
        self.locks._keep_one(self.tick.lease)

    def close(self) -> None:
        """Forget a run that has ended."""
        assert self.thread is None or self.thread.ended
        self._gates.thread = self.tick = None
        self.locks._held.clear()

    def _begin(self, tick: Tick, run: Callable[[], None]) -> bool:
        self.tick = tick
        self._gates.unheard = self._gates.begun = False

        def work(thread: Gated) -> None:
            self._gates.thread = thread
            run()

        self._gates.thread = Gated(work, self._changed)
        return True

    def _run_tick(self) -> None:
        lock.current.set(self.tick)
        result, raised = None, None
        try:
            result = self._actor.run()
        except RetryRun as retry:
            raised = retry
        nothing = cast("Any", None)
        self._middleware.after_process_message(nothing, nothing, result=result, exception=raised)

    def _run_by_hand(self) -> None:
        assert self.tick is not None
        try:
            by_hand.run(self.locks, self.runner, self.sweeper, self.settings, self.tick)
        except WorkerError:
            return  # as the command, which says so and ends

    def _committed(self, _seconds: float) -> None:
        if self._gates.unheard:
            self._gates.unheard = False
            raise Answers
