"""Reads an overview from PostgreSQL and Redis, within seconds, part by part: what cannot be read is told by name."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import redis

from app.fleet import processes
from app.fleet.signs_of_life import KEPT
from app.overview import verdict
from app.overview.model import Blocker, Overview, ServerView, SinkView, SweeperView
from app.overview.sources import backlogs, blockers, locks, obstacles, receivers, servers, standings
from app.overview.sources.locks import Locks
from app.overview.sources.parts import WAITED, Parts
from app.overview.views import Asked, Found, views
from app.sweeping.sweeper import Sweeper
from app.sweeping.unserved import Pair

if TYPE_CHECKING:
    from psycopg import Connection

    from app.fleet.processes import Process


#: What all that is asked of PostgreSQL may take but backlogs, and what these may, by themselves and together.
WITHIN, EACH_BACKLOG, BACKLOGS = timedelta(seconds=4), timedelta(seconds=2), timedelta(seconds=3)
#: Seconds between two looks at a lock of whom nobody knows: a run may have begun, and not be in the ledger yet.
_SECOND_LOOK = 0.3
#: Our own tables, for which a sweep may have to wait as well.
_OWN_TABLES = tuple(
    f"secrets_bridge_worker.{table}" for table in ("sweep_state", "sweep_run", "notification_event", "process")
)


def read(
    connection: Connection[Any] | None, client: redis.Redis | None, asked: Asked, *, no_connection: str = ""
) -> Overview:
    """Return an overview, judged; without a connection it says why there is none, in words of ours. Never waits long.

    The connection is in autocommit mode. Raises nothing of PostgreSQL's or Redis's.
    """
    found = Found(_locks(client, asked), datetime.now(UTC))
    parts = Parts(connection, WITHIN)
    gone = servers.unreachable(no_connection or "it gave no answer in time, or closed the connection")
    postgres = parts.read("postgres", servers.read, gone)
    sinks = _read_parts(parts, found, asked)
    if connection is not None and not connection.closed:
        counted = _counted(asked, found)
        found.backlogs = backlogs.read(connection, counted, EACH_BACKLOG, BACKLOGS)
        found.passes = backlogs.runs_a_pass(connection, [sweeper for sweeper, _ in counted], asked.most_pages)
    shown = views(asked, found)
    if strangers := [view.name for view in shown if view.holder and not view.holder.worker and view.overdue_since]:
        time.sleep(_SECOND_LOOK)
        _look_again(parts, client, asked, found, strangers)
        shown = views(asked, found)
    seen = _blockers(parts, asked, shown)
    if connection is not None and connection.closed:
        postgres = gone
    return verdict.judge(
        Overview(
            deployment=_deployment(asked, found.fleet),
            now=found.now,
            sweepers=tuple(_blocked(view, asked, seen) for view in shown) if found.standings else (),
            processes=tuple(found.fleet),
            sinks=sinks,
            servers=(postgres, found.locks.server),
            blockers=tuple(seen),
            unread=frozenset(problem.subject for problem in parts.problems),
            problems=tuple(parts.problems),
        )
    )


def _locks(client: redis.Redis | None, asked: Asked) -> Locks:
    if client is None:
        return Locks(ServerView("redis", "unreachable", "", "not asked"))
    return locks.read(client, asked.namespace, asked.names)


def _read_parts(parts: Parts, found: Found, asked: Asked) -> tuple[SinkView, ...]:
    """Read what has a part of its own, and return the receivers."""
    found.fleet = parts.read("processes", partial(processes.read, seen_within=KEPT), [])
    found.standings = parts.read("sweep_state", partial(standings.read, watched=asked.watched), {})
    found.now = next((standing.now for standing in found.standings.values()), found.now)
    found.runs = parts.read("sweep_run", partial(standings.read_runs, names=asked.names), {})
    found.obstacles = parts.read("sweep_obstacle", partial(obstacles.current, names=asked.names), {})
    return parts.read("sinks", partial(receivers.read, targets=asked.targets), ())


def _counted(asked: Asked, found: Found) -> list[Pair]:
    """Return the sweepers whose backlog is of interest: those that run, or would but for a pause or brake."""
    known = found.standings
    return [pair for pair in asked.pairs if pair[1].enabled and pair[0].name in known and known[pair[0].name].present]


def _look_again(parts: Parts, client: redis.Redis | None, asked: Asked, found: Found, strangers: Sequence[str]) -> None:
    """Have locks count as held by strangers only where the same holder has no run in the ledger still."""
    before = found.locks.held
    found.locks = _locks(client, asked)
    found.runs = parts.read("sweep_run", partial(standings.read_runs, names=asked.names), found.runs)
    same = {
        name: lock
        for name, lock in found.locks.held.items()
        if name not in strangers or (name in before and before[name].token == lock.token)
    }
    found.locks = replace(found.locks, held=same)


def _blockers(parts: Parts, asked: Asked, shown: Sequence[SweeperView]) -> list[Blocker]:
    """Return who keeps whom from which table, where a sweep has waited, or may have, or we have."""
    waiting = {view.name for view in shown if _may_wait(view)}
    if not waiting and not parts.waited:
        return []
    tables = {table for sweeper, _ in asked.pairs if sweeper.name in waiting for table in _tables(sweeper)}
    return parts.read("locks in PostgreSQL", partial(blockers.read, tables=sorted({*_OWN_TABLES, *tables})), [])


def _may_wait(view: SweeperView) -> bool:
    """Return whether a sweeper may be kept from its table: while that is locked, not even its failure is stored."""
    return view.sqlstate in WAITED or view.overdue_since is not None


def _blocked(view: SweeperView, asked: Asked, seen: Sequence[Blocker]) -> SweeperView:
    """Return a view with those who keep it from its table."""
    if not _may_wait(view) or not seen:
        return view
    (own,) = (_tables(sweeper) for sweeper, _ in asked.pairs if sweeper.name == view.name)
    known = own | {table.partition(".")[2] for table in _OWN_TABLES} | {""}
    return replace(view, blockers=tuple(blocker for blocker in seen if blocker.table in known))


def _tables(sweeper: Sweeper[Any]) -> set[str]:
    return {relation.partition(".")[0] for relation in (*sweeper.needs, *sweeper.uses)}


def _deployment(asked: Asked, fleet: Sequence[Process]) -> str:
    named = {process.deployment for process in fleet if process.alive}
    return asked.deployment or (named.pop() if len(named) == 1 else "")
