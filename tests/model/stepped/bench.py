"""A PostgreSQL, a Redis and some replicas in steps; what is stored, in the model's words."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import psycopg
import redis as redis_py
from psycopg import Connection
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from app.sweeping.lock import lock_key
from app.sweeping.steering import pauses
from tests.model.abstract.world import Outcome
from tests.model.stepped.clocks import OPTIONS, ClockedRedis, Clocks, since_zero, slot
from tests.model.stepped.gates import settle
from tests.model.stepped.replica import NAME, SteppedReplica
from tests.support.waiting import HUNG

_OUTCOMES = {"running": Outcome.RUNNING, "success": Outcome.SUCCESS, "interrupted": Outcome.INTERRUPTED}
_BLOCKED = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND cardinality(pg_blocking_pids(pid)) > 0
"""
# One statement, so that all of it is of one moment.
_STORED = """
SELECT (SELECT row_to_json(state) FROM (
               SELECT last_slot, previous_slot, token FROM secrets_bridge_worker.sweep_state) AS state) AS state,
       (SELECT coalesce(json_agg(run ORDER BY id), '[]') FROM (
               SELECT id, slot, covered, token, changed, outcome, requested_by, error_class
                 FROM secrets_bridge_worker.sweep_run) AS run) AS runs,
       (SELECT count(*) FROM work) AS changed,
       (SELECT coalesce(sum((metadata ->> 'rows')::bigint), 0) FROM secrets_bridge_worker.notification_event
         WHERE kind = 'swept') AS told
"""
_TABLES = ("sweep_state", "sweep_run", "sweeper_pause", "notification_delivery", "notification_event")


class Ran(NamedTuple):
    """A row of the ledger that is no failure."""

    slot: int
    covered: int
    token: int
    changed: int
    outcome: Outcome
    by_hand: bool


class Stored(NamedTuple):
    """What PostgreSQL has."""

    last: int | None
    previous: int | None
    token: int
    rows: tuple[Ran, ...]
    #: Classes of errors of runs that failed.
    errors: tuple[str, ...]
    #: Rows that were changed, by the swept table, and of which people were told.
    changed: int
    told: int


class Bench:
    """Servers and replicas. `reset` between two examples."""

    def __init__(
        self, sql: Connection[Any], pool: ConnectionPool[Connection[Any]], client: redis_py.Redis, replicas: int
    ) -> None:
        self.sql = sql
        self._client = client
        self._changed = threading.Condition()
        self.clocks = Clocks(sql, client)
        sql.execute("CREATE TABLE work (id bigint GENERATED ALWAYS AS IDENTITY, worker text NOT NULL)")
        self.replicas = [SteppedReplica(number, pool, client, self._changed) for number in range(replicas)]

    def reset(self) -> None:
        """End all that is under way, and begin anew at the time 0."""
        self.end_all()
        for table in _TABLES:
            self.sql.execute(f"DELETE FROM secrets_bridge_worker.{table}".encode())
        self.sql.execute("DELETE FROM work")
        self._client.flushall()
        self.clocks.set(0)

    def end_all(self) -> None:
        """Have each run crash: those that hold locks first, so that the others come to a gate."""
        while threads := [replica.thread for replica in self.replicas if replica.thread and not replica.thread.ended]:
            for thread in threads:
                if thread.gate is not None:
                    thread.answer("crash")
                    thread.join()
            self.settle()
        for replica in self.replicas:
            replica.close()

    def go(self, number: int, word: str = "go") -> str | None:
        """Have a replica go on from its gate; return the one that it has come to, None when it has ended or waits."""
        replica = self.replicas[number]
        assert replica.thread is not None
        replica.thread.answer(word)
        self.settle()
        return replica.gate

    def settle(self) -> None:
        """Wait until nothing moves any more."""
        threads = [replica.thread for replica in self.replicas if replica.thread]
        settle(threads, self._changed, self._blocked)
        for replica in self.replicas:
            if replica.thread and replica.thread.ended:
                replica.thread.join()
                replica.close()

    def tick(self, number: int, time: int) -> bool:
        """Have a replica get the tick of a slot; return whether it has taken the lock."""
        taken = self.replicas[number].acquire(slot(time))
        self.settle()
        return taken

    def by_hand(self, number: int, *, despite_pause: bool = False) -> bool:
        """Have a replica be asked for a run by hand; return whether it has taken the lock."""
        taken = self.replicas[number].acquire_by_hand(despite_pause=despite_pause)
        self.settle()
        return taken

    def expire(self) -> None:
        """Have the lock be gone."""
        self._client.delete(lock_key("model", NAME))

    def wipe(self) -> None:
        """Have Redis forget everything but the time."""
        self._client.flushall()
        self.clocks.remind()

    def pause(self) -> None:
        """Have an operator pause the sweeper."""
        pauses.pause(self.sql, [NAME], timedelta(days=1), "operator@desk", "a test")

    def resume(self) -> None:
        """Have an operator resume it."""
        pauses.resume(self.sql, [NAME], "operator@desk")

    def cut(self, number: int) -> None:
        """End the connection on which a replica's transaction is open."""
        replica = self.replicas[number]
        assert replica.tick is not None
        connection = replica.tick.lease._connection
        assert connection is not None
        self.sql.execute("SELECT pg_terminate_backend(%s, 10000)", [connection.info.backend_pid])

    @property
    def held(self) -> bool:
        """Whether the lock is somebody's."""
        return bool(self._client.exists(lock_key("model", NAME)))

    @property
    def mark(self) -> int | None:
        """The mark in Redis, as the model counts time."""
        mark = self._client.get(f"{{{lock_key('model', NAME)}}}:tick")
        return None if mark is None else int(mark) - slot(0)

    def stored(self) -> Stored:
        """Return what PostgreSQL has."""
        row = self.sql.cursor(row_factory=dict_row).execute(_STORED).fetchone()
        assert row is not None
        state, runs = row["state"] or {"last_slot": None, "previous_slot": None, "token": 0}, row["runs"]
        return Stored(
            _time(state["last_slot"]),
            _time(state["previous_slot"]),
            state["token"],
            tuple(
                Ran(
                    _time(run["slot"]) or 0,
                    run["covered"],
                    run["token"],
                    run["changed"],
                    _OUTCOMES[run["outcome"]],
                    run["requested_by"] is not None,
                )
                for run in runs
                if run["outcome"] != "failure"
            ),
            tuple(run["error_class"] for run in runs if run["error_class"]),
            row["changed"],
            row["told"],
        )

    def _blocked(self) -> int:
        row = self.sql.execute(_BLOCKED).fetchone()
        assert row is not None
        return int(row[0])


def _time(text: str | None) -> int | None:
    return None if text is None else since_zero(datetime.fromisoformat(text))


@contextmanager
def bench(database: str, redis_url: str, replicas: int = 2) -> Iterator[Bench]:
    """Make a bench on a database with our schema, and a Redis, both of its own."""
    arguments = {"autocommit": True, "options": OPTIONS}
    with (
        psycopg.connect(database, **arguments) as sql,  # type: ignore[arg-type]
        ClockedRedis.from_url(redis_url) as client,
        ConnectionPool[Connection[Any]](
            database, kwargs=arguments, min_size=0, max_size=2 * replicas, timeout=HUNG, open=True
        ) as pool,
    ):
        made = Bench(sql, pool, client, replicas)
        made.reset()
        try:
            yield made
        finally:
            made.end_all()
