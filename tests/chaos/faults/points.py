"""Fault points: a process caught in the middle of a transaction, where it is about to write in a relation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg

if TYPE_CHECKING:
    from psycopg import Connection

    from tests.chaos.deployment import Deployment

#: What workers write, in the order of a run: the claim, its row, what is swept, the end with its events.
CLAIM, BATCH = ("sweep_state",), ("secret_wraps", "secrets", "agents", "sync_jobs", "sessions", "gitops_observations")
FINISH, OUTBOX = ("sweep_run",), ("notification_event", "notification_delivery")
STAGES = {"claim": CLAIM, "batch": BATCH, "end of a run": FINISH, "outbox": OUTBOX}

#: Seconds of a gate after which those who wait may fail.
LONG = 0.25
_WAITING: LiteralString = """
SELECT DISTINCT application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
 WHERE locktype = 'advisory' AND NOT granted AND objsubid = 1 AND usename <> 'postgres'
   AND (classid::bigint << 32 | objid::bigint) = chaos.gate(%s)
"""
_IN_TRANSACTION: LiteralString = """
SELECT DISTINCT application_name FROM pg_stat_activity
 WHERE application_name = ANY (%s) AND xact_start IS NOT NULL AND usename <> 'postgres'
"""


class Gate:
    """A gate that is closed: whoever is about to write in the relation waits at it."""

    def __init__(self, sql: Connection[Any], relation: str) -> None:
        self._sql = sql
        self.relation = relation
        #: Since when somebody has been waiting at it, monotonic seconds.
        self.waited_since: float | None = None

    def wait(self, seconds: float) -> list[str]:
        """Wait until a process of the deployment waits at it; return the names of all that do, none after so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if found := self._sql.execute(_WAITING, [self.relation]).fetchall():
                self.waited_since = time.monotonic()
                return sorted(name for (name,) in found)
            time.sleep(0.01)
        return []

    def in_transaction(self, names: list[str]) -> set[str]:
        """Return which of them have a transaction open at this moment."""
        return {name for (name,) in self._sql.execute(_IN_TRANSACTION, [names])}

    def open(self) -> None:
        """Let all pass."""
        self._sql.execute("SELECT pg_advisory_unlock_all()")


@contextmanager
def closed(deployment: Deployment, relation: str) -> Iterator[Gate]:
    """Close a relation's gate and yield it; whatever happens it is open afterwards.

    A worker waits at it for half a second at the longest, as for any lock: one that is closed for about as long is an
    outage of that relation.
    """
    with deployment.sql() as sql, deployment.log.during("gate", outage=False, note=relation) as fault:
        sql.execute("SELECT pg_advisory_lock(chaos.gate(%s))", [relation])
        gate = Gate(sql, relation)
        try:
            yield gate
        finally:
            with suppress(psycopg.Error):  # whose session it was is gone, and the lock with it
                gate.open()
            fault.began = gate.waited_since or time.monotonic()
            fault.outage = time.monotonic() - fault.began > LONG
