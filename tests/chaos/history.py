"""What happened in a round, read when it is over: the input of every check. Times of servers are aware, UTC."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg import Connection
from psycopg.rows import dict_row

from tests.chaos import preload
from tests.chaos.fault_log import Fault
from tests.chaos.surroundings.lock_record import LockStep
from tests.chaos.surroundings.outside import RECEIVERS
from tests.chaos.watch import Success
from tests.support.go_replica import Held

if TYPE_CHECKING:
    from tests.chaos.deployment import Deployment
    from tests.chaos.watch import Watch


class Change(NamedTuple):
    """A change of a row that was committed. In the order of `n` those of one row are in the order of their commits."""

    n: int
    #: The transaction, when it began, and the moment of the change, by PostgreSQL's clock.
    xid: int
    began: datetime
    at: datetime
    #: Whether the worker did it, and by which process's connection (its application_name).
    ours: bool
    session: str
    relation: str
    op: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    #: The interval of the sweepers of the process that did it, where that is known.
    cadence: timedelta | None = None


class Received(NamedTuple):
    """A request that a receiver answered with success."""

    at: float
    #: The receiver, by its name in the outbox.
    target: str
    #: The id that it bore, the same on every retry; empty where a receiver's API has none.
    id: str
    body: Mapping[str, Any]


class Leftover(NamedTuple):
    """Something that is still there after the end, when it should not be."""

    what: str
    note: str


@dataclass(frozen=True)
class History:
    """A round. Tests make small ones by hand."""

    changes: Sequence[Change] = ()
    #: When the transactions of those changes were committed, by PostgreSQL's clock; none where that was moved.
    commits: Mapping[int, datetime] = field(default_factory=dict)
    #: The ledger as it is at the end: rows by column.
    runs: Sequence[Mapping[str, Any]] = ()
    received: Sequence[Received] = ()
    #: What every event is told to, by its name in the outbox.
    receivers: frozenset[str] = RECEIVERS
    #: Rows that the load has renewed and that are gone or were flipped, by table.
    renewed_and_lost: Mapping[str, int] = field(default_factory=dict)
    #: Sweepers by name, and the cadences that processes of the round had; the first one is the usual one.
    cadences: Mapping[str, Sequence[timedelta]] = field(default_factory=dict)
    lease: timedelta = timedelta(seconds=3)
    faults: Sequence[Fault] = ()
    successes: Sequence[Success] = ()
    #: When the watch began, and until when sweepers were to succeed, monotonic seconds.
    watched: tuple[float, float] = (0.0, 0.0)
    #: When the last fault was over, monotonic seconds; none while faults may yet come.
    calm: float | None = None
    deaths: Sequence[str] = ()
    leftovers: Sequence[Leftover] = ()
    #: When a replica of the Go worker held which lock, by PostgreSQL's clock.
    go_held: Sequence[Held] = ()
    #: What was done to the sweepers' locks, where a round records it.
    locks: Sequence[LockStep] = ()
    #: What faults have found out while they struck.
    remarks: Sequence[str] = ()

    @cached_property
    def events(self) -> Mapping[str, Mapping[str, Any]]:
        """Events that were committed, by id: those that are not there any more as well."""
        return {change.after["id"]: change.after for change in self._written("notification_event")}

    @cached_property
    def deliveries(self) -> Mapping[int, Mapping[str, Any]]:
        """Deliveries by id, each as it was committed last."""
        return {change.after["id"]: change.after for change in self._written("notification_delivery")}

    @property
    def vanished(self) -> Sequence[Change]:
        """Events and deliveries that were deleted: none is old enough."""
        relations = {"notification_event", "notification_delivery"}
        return [change for change in self.changes if change.relation in relations and change.op == "delete"]

    def _written(self, relation: str) -> Iterator[Change]:
        return (change for change in self.changes if change.relation == relation and change.op != "delete")


_CHANGES = """
SELECT n, xid, began, at, ours, session, relation, op, coalesce(before, '{}') AS before, coalesce(after, '{}') AS after,
       cadence
  FROM chaos.change ORDER BY n
"""
_COMMITS = """
SELECT xid, pg_xact_commit_timestamp(xid::text::xid) AS at
  FROM (SELECT DISTINCT xid FROM chaos.change WHERE ours) AS ours
"""
_LOST = {
    "secret_wraps": "SELECT count(*) FROM chaos.renewed WHERE relation = 'secret_wraps'"
    " AND NOT EXISTS (SELECT FROM secret_wraps WHERE secret_wraps.id::text = renewed.id)"
    # The end of a reveal session is the end of its wraps as well, however long they would have lived.
    " AND NOT EXISTS (SELECT FROM reveal_sessions"
    " WHERE expired_at IS NOT NULL AND renewed.id = ANY (wrap_ids::text[]))",
    "secrets": "SELECT count(*) FROM chaos.renewed JOIN secrets ON secrets.id::text = renewed.id"
    " WHERE relation = 'secrets' AND (status <> 'present' OR last_seen_at < now())",
    "agents": "SELECT count(*) FROM chaos.renewed JOIN agents ON agents.id::text = renewed.id"
    " WHERE relation = 'agents' AND (status <> 'active' OR last_seen_at < now())",
    "sync_jobs": "SELECT count(*) FROM chaos.renewed JOIN sync_jobs ON sync_jobs.id::text = renewed.id"
    " WHERE relation = 'sync_jobs' AND (status <> 'claimed' OR claim_expires_at < now())",
}


def read(  # noqa: PLR0913 - all that a round was played with
    deployment: Deployment,
    watch: Watch,
    cadences: Mapping[str, Sequence[timedelta]],
    *,
    leftovers: Sequence[Leftover] = (),
    lease: timedelta = timedelta(seconds=3),
    calm: float | None = None,
) -> History:
    """Read it all, once everything has come to rest; `calm` is when the last fault was over."""
    with deployment.sql() as sql, sql.cursor(row_factory=dict_row) as cursor:
        changes = [Change(**row) for row in cursor.execute(_CHANGES)]
        commits = {row["xid"]: row["at"] for row in cursor.execute(_COMMITS)}
        runs = cursor.execute("SELECT * FROM secrets_bridge_worker.sweep_run ORDER BY id").fetchall()
        lost = {relation: _count(sql, query) for relation, query in _LOST.items()}
    return History(
        changes=changes,
        commits={} if preload.moves_clock(deployment.plan.preload.get("postgres", {})) else commits,
        runs=runs,
        received=received(deployment),
        receivers=deployment.outside.receivers,
        renewed_and_lost=lost,
        cadences=cadences,
        lease=lease,
        go_held=list(deployment.go_held),
        locks=list(deployment.lock_record.steps) if deployment.lock_record else (),
        remarks=list(deployment.remarks),
        faults=list(deployment.log.faults),
        successes=list(watch.successes),
        watched=(watch.began, watch.ended),
        calm=calm,
        deaths=list(deployment.deaths),
        leftovers=leftovers,
    )


def received(deployment: Deployment) -> list[Received]:
    """Return what the receivers have accepted, in the order of arrival."""
    return [
        Received(seen.at, seen.path.strip("/"), seen.headers.get("webhook-id", ""), json.loads(seen.body))
        for seen in deployment.outside.servers["webhook"].accepted
    ]


def _count(sql: Connection[Any], query: str) -> int:
    row = sql.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])
