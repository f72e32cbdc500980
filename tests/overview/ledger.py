"""A ledger as runs of hours would have left it, written in a moment; and processes that have lived meanwhile."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from psycopg import Connection
from psycopg.types.json import Jsonb

from app.sweeping.schedule import microseconds

_RUN = """
INSERT INTO secrets_bridge_worker.sweep_run (name, slot, covered, token, worker, started_at, finished_at, outcome,
       changed, batches, counts, error_class, sqlstate, requested_by)
VALUES (%(name)s, %(slot)s, %(covered)s, %(token)s, %(worker)s, %(started_at)s, %(finished_at)s, %(outcome)s,
        %(changed)s, %(batches)s, %(counts)s, %(error_class)s, %(sqlstate)s, %(requested_by)s) RETURNING id
"""
_STATE = """
INSERT INTO secrets_bridge_worker.sweep_state AS state (name, last_slot, previous_slot, token)
VALUES (%(name)s, %(slot)s, %(slot)s, %(token)s)
    ON CONFLICT (name) DO UPDATE SET last_slot = excluded.last_slot, token = greatest(state.token, excluded.token)
"""
_PROCESS = """
INSERT INTO secrets_bridge_worker.process
       (id, kind, queues, deployment, host, pid, version, started_at, seen_at, ended_at, clock_ahead, cadences, off,
        ticked_at)
VALUES (gen_random_uuid()::text, %(kind)s, %(queues)s, 'test', %(host)s, %(pid)s, '1', %(started_at)s, %(seen_at)s,
        %(ended_at)s, '0', %(cadences)s, %(off)s, %(ticked_at)s)
"""


class Ledger:
    """Writes runs of one sweeper. Slots are counted back from the current one, which is 0."""

    def __init__(self, sql: Connection[Any], name: str, interval: timedelta, token: int = 0) -> None:
        self.sql = sql
        self.name = name
        self.interval = interval
        self.token = token
        row = sql.execute("SELECT date_bin(%s, clock_timestamp(), 'epoch'), clock_timestamp()", [interval]).fetchone()
        assert row is not None
        self.current: datetime = row[0]
        self.now: datetime = row[1]

    def slot(self, ago: float) -> datetime:
        """Return the slot that was so many before the current one."""
        return self.current - ago * self.interval

    def begins(self, ago: float, slots: int, off: int = 0) -> bool:
        """Return whether a slot is the first of so many that are one of a longer cadence, or so many behind it."""
        return bool((microseconds(self.slot(ago)) // (self.interval // timedelta(microseconds=1)) - off) % slots == 0)

    def run(self, ago: float = 0, outcome: str = "success", **columns: Any) -> int:
        """Write one run and return its id; by default it began at once and took a tenth of a second."""
        slot = columns.get("slot", self.slot(ago))
        self.token += 1
        done = outcome in ("success", "interrupted")
        row = {
            "name": self.name,
            "slot": slot,
            "covered": 0,
            "token": self.token,
            "worker": "host:1",
            "started_at": slot + timedelta(milliseconds=10),
            "outcome": outcome,
            "changed": 0,
            "batches": int(done),
            "counts": {},
            "error_class": "LockNotAvailable" if outcome == "failure" else None,
            "sqlstate": "55P03" if outcome == "failure" else None,
            "requested_by": None,
        } | columns
        ended = None if outcome == "running" else row["started_at"] + timedelta(milliseconds=100)
        row = {"finished_at": ended} | row | {"counts": Jsonb(row["counts"])}
        inserted = self.sql.execute(_RUN, row).fetchone()
        assert inserted is not None
        if outcome != "failure":
            self.sql.execute(_STATE, {"name": self.name, "slot": slot, "token": row["token"] or 0})
        return int(inserted[0])

    def runs(self, first: int, last: int = 0) -> list[int]:
        """Write one run for each slot from the older to the newer one and return their ids."""
        return [self.run(ago) for ago in range(first, last - 1, -1)]

    def process(self, since: float, until: float | None = 0, *, kind: str = "worker", **columns: Any) -> None:
        """Write the signs of life of a process from one slot to another; None: it lives."""
        seen = self.now + timedelta(seconds=10) if until is None else self.slot(until)
        row = {
            "kind": kind,
            "queues": {"worker": ["sweeps"], "notifier": ["sinks"]}.get(kind, []),
            "host": "host",
            "pid": 1,
            "started_at": self.slot(since),
            "seen_at": seen,
            "ended_at": None,
            "ticked_at": None,
            "cadences": {self.name: self.interval.total_seconds()},
            "off": {},
        } | columns
        row |= {"cadences": Jsonb(row["cadences"]), "off": Jsonb(row["off"])}
        self.sql.execute(_PROCESS, row)

    def pause(self, since: float, until: float, **columns: Any) -> None:
        """Write a pause from one slot to another."""
        row = {"by": "anna", "reason": "migration", "resumed_at": None} | columns
        self.sql.execute(
            "INSERT INTO secrets_bridge_worker.sweeper_pause (name, began_at, until, paused_by, reason, resumed_at)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            [self.name, self.slot(since), self.slot(until), row["by"], row["reason"], row["resumed_at"]],
        )

    def obstacle(self, since: float, until: float, kind: str = "foreign_lock") -> None:
        """Write what was seen in the way from one slot to another."""
        self.sql.execute(
            "INSERT INTO secrets_bridge_worker.sweep_obstacle (name, kind, began_at, seen_at) VALUES (%s, %s, %s, %s)",
            [self.name, kind, self.slot(since), self.slot(until)],
        )
