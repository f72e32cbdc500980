"""A provisional reading of an overview, from the ledger, the signs of life and the outbox: no locks, no judgement.

To be replaced by that of `app.overview.reading`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import PoolTimeout

from app.core.errors import describe
from app.fleet import processes
from app.overview.model import Overview, Problem, RunPoint, ServerView, SinkView, State, SweeperView, Verdict
from app.sweeping.scans.due import Backlog
from app.sweeping.schedule import microseconds, moment, slot_at
from app.sweeping.steering import pauses
from app.sweeping.steering.pauses import Pause
from app.sweeping.sweeper import Sweeper, SweeperSettings

if TYPE_CHECKING:
    from psycopg import Connection, Cursor
    from psycopg_pool import ConnectionPool

_NOW: LiteralString = "SELECT now() AS now, current_setting('server_version') AS version"
_RUNS: LiteralString = """
SELECT configured.name, run.*
  FROM unnest(%(names)s::text[]) AS configured (name)
 CROSS JOIN LATERAL (
       SELECT slot, started_at, finished_at, outcome, changed, worker, covered, handed_over, error_class, sqlstate,
              requested_by
         FROM secrets_bridge_worker.sweep_run WHERE sweep_run.name = configured.name
        ORDER BY started_at DESC LIMIT 60) AS run
 ORDER BY started_at
"""
_SINKS: LiteralString = """
SELECT target, off_fingerprint IS NOT NULL AS off, off_reason, muted_until > now() AS muted, muted_until, muted_by,
       muted_reason, rests_until > now() AS resting, rests_until,
       count(*) FILTER (WHERE state IN ('pending', 'sending')) AS waiting,
       min(queued_at) FILTER (WHERE state IN ('pending', 'sending')) AS oldest,
       count(*) FILTER (WHERE state = 'dead') AS dead
  FROM secrets_bridge_worker.notification_delivery AS delivery
  LEFT JOIN secrets_bridge_worker.notification_target AS receiver ON receiver.name = target
 GROUP BY target, receiver.name ORDER BY target
"""
_SEEN_WITHIN = timedelta(hours=1)
Pairs = Sequence[tuple[Sweeper[Any], SweeperSettings]]


def read(pool: ConnectionPool[Connection[Any]], deployment: str, pairs: Pairs) -> Overview:
    """Return what there is."""
    try:
        with pool.connection(timeout=1.0) as connection, connection.transaction():
            cursor = connection.cursor(row_factory=dict_row)
            cursor.execute("SET LOCAL statement_timeout = '2s'")
            return _read(cursor, deployment, pairs)
    except (psycopg.Error, PoolTimeout) as error:
        server = ServerView("PostgreSQL", "unreachable", "")
        problem = Problem("PostgreSQL", f"cannot be read: {describe(error).error}.", "see `sb-worker check`")
        return Overview(deployment, datetime.now(UTC), (), (), (), (server,), (problem,))


def _read(cursor: Cursor[dict[str, Any]], deployment: str, pairs: Pairs) -> Overview:
    (server,) = cursor.execute(_NOW).fetchall()
    found: dict[str, list[dict[str, Any]]] = {sweeper.name: [] for sweeper, _ in pairs}
    for row in cursor.execute(_RUNS, {"names": list(found)}).fetchall():
        found[row["name"]].append(row)
    paused = pauses.current(cursor.connection)
    views = tuple(
        _view(
            sweeper, own, found[sweeper.name], server["now"], paused.get(sweeper.name), _backlog(cursor, sweeper, own)
        )
        for sweeper, own in pairs
    )
    sinks = tuple(map(_sink, cursor.execute(_SINKS).fetchall()))
    known = tuple(processes.read(cursor, _SEEN_WITHIN))
    failing = [view for view in views if view.failures]
    problems = tuple(Problem(view.name, "fails.", "see its lines in the log") for view in failing)
    servers = (ServerView("PostgreSQL", "", server["version"].partition(" ")[0]),)
    verdict = Verdict.DEGRADED if problems else Verdict.FINE
    return Overview(deployment, server["now"], views, known, sinks, servers, problems, verdict)


def _backlog(cursor: Cursor[dict[str, Any]], sweeper: Sweeper[Any], own: SweeperSettings) -> Backlog | None:
    due = sweeper.backlog(own) if own.enabled else None
    try:
        with cursor.connection.transaction():
            return due.count(cursor) if due else None
    except psycopg.errors.ProgrammingError:  # an older api
        return None


def _sink(row: dict[str, Any]) -> SinkView:
    state, reason, until = "on", "", None
    if row["off"]:
        state, reason = "off", row["off_reason"] or ""
    elif row["muted"]:
        state, reason, until = "muted", f"{row['muted_by']}: {row['muted_reason']}", row["muted_until"]
    elif row["resting"]:
        state, reason, until = "resting", "failed five times in a row", row["rests_until"]
    return SinkView(row["target"], state, reason, until, row["waiting"], row["oldest"], row["dead"])


def _view(  # noqa: PLR0913, PLR0917 - what is known of one
    sweeper: Sweeper[Any],
    own: SweeperSettings,
    rows: list[dict[str, Any]],
    now: datetime,
    paused: Pause | None,
    backlog: Backlog | None,
) -> SweeperView:
    runs = tuple(_point(row) for row in rows)
    failures = 0
    while failures < len(runs) and runs[-1 - failures].outcome == "failure":
        failures += 1
    return SweeperView(
        name=sweeper.name,
        interval=own.tick,
        state=(State.PAUSED if paused else State.ON) if own.enabled else State.OFF,
        reason=(f"{paused.paused_by}: {paused.reason}" if paused else "")
        if own.enabled
        else f"{own.switch} is not set",
        until=paused.until if paused else None,
        next_tick=moment(slot_at(microseconds(now), own.tick)) + own.tick,
        runs=runs,
        last_success=max((run.started_at for run in runs if run.outcome == "success"), default=None),
        overdue_since=None,
        holder=None,
        backlog=backlog,
        failures=failures,
        failing_since=runs[-failures].started_at if failures else None,
    )


def _point(row: dict[str, Any]) -> RunPoint:
    finished = row["finished_at"]
    return RunPoint(
        slot=row["slot"],
        started_at=row["started_at"],
        outcome=row["outcome"],
        lateness=(row["started_at"] - row["slot"]).total_seconds(),
        changed=row["changed"],
        seconds=(finished - row["started_at"]).total_seconds() if finished else None,
        worker=row["worker"],
        covered=row["covered"],
        handed_over=row["handed_over"],
        error=" ".join(filter(None, (row["error_class"], row["sqlstate"]))),
        requested_by=row["requested_by"] or "",
    )
