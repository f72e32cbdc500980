"""What a run would change now: the sweeper's own strategy, in one transaction that is rolled back.

It asks for neither lock nor slot and leaves nothing behind, so that it may be done at any time, by anybody with the
worker's role. It is bounded in rows and time, and waits for nobody: what others hold it counts as a run would.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

import psycopg
from psycopg.rows import dict_row

from app.core.errors import SweepFailed, describe
from app.storage.postgres import only_row
from app.sweeping.ledger import transactions
from app.sweeping.schedule import microseconds, slot_at
from app.sweeping.strategy import Run, Step, Strategy, Took
from app.sweeping.sweeper import Sweeper, SweeperSettings

if TYPE_CHECKING:
    from psycopg import Connection

    from app.sweeping.scans.due import Due

#: Where it ends: rows that would be changed, and time, since they are locked until then.
MOST_ROWS, MOST_TIME = 10_000, timedelta(seconds=2)
#: Milliseconds: a statement ends with the time that is left, a wait for a lock at once, a client that hangs soon.
LIMITS = transactions.Limits(statement="2000", lock="50", idle="4000", transaction="8000")

#: Milliseconds for a look at the oldest row: the rest of the time is for what is asked.
SINCE_WITHIN = "500"

TIME_LEFT = "SELECT set_config('statement_timeout', %(left)s, true)"


class Found(NamedTuple):
    """What would be changed, and other counts under the sweeper's names."""

    changed: int
    counts: Mapping[str, int]
    #: Whether it ended before all was seen, so that there may be more.
    more: bool
    #: Since when the oldest row is due, as far as that is found out cheaply; aware, UTC.
    since: datetime | None = None


def look(
    connection: Connection[Any], sweeper: Sweeper[Any], settings: SweeperSettings, most_time: timedelta = MOST_TIME
) -> Found:
    """Return what a run would change now. Raises NotDue when the table is missing, SweepFailed when a run would fail.

    `connection` is in autocommit mode. The lock of a single target, which a run takes in Redis, is not taken.
    """
    strategy = (sweeper.dry_run or sweeper.strategy)(settings)
    try:
        with closing(strategy), connection.transaction(force_rollback=True):
            run = _DryRun(connection, sweeper, settings, strategy, most_time)
            since = run.since(sweeper.backlog(settings))
            return run.go()._replace(since=since)
    except psycopg.Error as error:
        raise SweepFailed(describe(error)) from None


class _DryRun:
    def __init__(
        self,
        connection: Connection[Any],
        sweeper: Sweeper[Any],
        settings: SweeperSettings,
        strategy: Strategy,
        most_time: timedelta,
    ) -> None:
        self._connection = connection
        self._strategy = strategy
        self._ends = time.monotonic() + most_time.total_seconds()
        relation = sweeper.rests_without(settings)
        begun = transactions.begun(transactions.begin(connection, relation, sweeper.table, LIMITS, durable=False))
        self._run = Run(
            connection.cursor(row_factory=dict_row),
            sweeper.table,
            slot_at(microseconds(begun.now), settings.tick),
            now=begun.now,
            cutoff=begun.now - strategy.older_than,
            pages=begun.pages,
            partitions=begun.partitions,
            rows_per_page=begun.rows_per_page,
            lock_timeout=LIMITS.lock,
        )

    def since(self, due: Due | None) -> datetime | None:
        """Return since when the oldest row is due; None where that takes long, or there is no such row."""
        if due is None:
            return None
        try:
            with self._connection.transaction():
                self._connection.execute(TIME_LEFT, {"left": SINCE_WITHIN})
                backlog = due.count(self._run.cursor)
        except (psycopg.errors.QueryCanceled, psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
            return None
        except psycopg.DataError:  # a moment that cannot be reckoned with; the rows are what was asked for
            return None
        return backlog.since if backlog else None

    def go(self) -> Found:
        """Do step after step, to the end or to the limits."""
        strategy, counts = self._strategy, Counter[str]()
        more = False
        while not more:
            step = self._step(MOST_ROWS - counts["changed"])
            if step is not None:
                counts.update(step.counts)
                if step.last:
                    break
            more = self._time_is_up() or counts["changed"] >= MOST_ROWS or (step is not None and step.enough)
            if step is not None and not more:
                if strategy.looks:
                    strategy.look(self._read, self._time_is_up)
                strategy.wait(lambda: False)
        if strategy.rows_failed:
            counts["rows_failed"] = strategy.rows_failed
        return Found(counts.pop("changed", 0), +counts, more)

    def _step(self, rows: int) -> Step | None:
        """Do a step that changes at most so many rows; None after one that failed, when another may fare better."""
        strategy, run = self._strategy, replace(self._run, most_rows=rows)
        started = time.perf_counter()
        try:
            with self._connection.transaction():
                self._limit()
                strategy.ask(run)
                step = strategy.step(run, over=False)
        except psycopg.Error as error:
            out_of_time = isinstance(error, psycopg.errors.QueryCanceled) and self._time_is_up()
            if not (out_of_time or strategy.recover(error)):
                raise
            return None
        took = time.perf_counter() - started
        strategy.committed(Took(took, took, 0.0))
        return step

    def _read(self, query: LiteralString, **parameters: object) -> dict[str, Any]:
        with self._connection.transaction():
            self._limit()
            return only_row(self._connection.cursor(row_factory=dict_row).execute(query, parameters))

    def _limit(self) -> None:
        left = max(1, int((self._ends - time.monotonic()) * 1000))
        self._connection.execute(TIME_LEFT, {"left": str(left)})

    def _time_is_up(self) -> bool:
        return time.monotonic() >= self._ends
