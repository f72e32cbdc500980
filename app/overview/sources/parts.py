"""The parts that an overview is read in: each under limits of its own, and what cannot be read is told by name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg.rows import dict_row

from app.core.errors import describe
from app.overview.model import Problem

if TYPE_CHECKING:
    from psycopg import Connection, Cursor

T = TypeVar("T")

#: What a statement of one part may take, and its wait for a lock.
STATEMENT, LOCK = timedelta(seconds=1), timedelta(milliseconds=300)
#: SQLSTATEs of a statement that has waited: for a lock, or until it was cancelled.
WAITED = ("55P03", "57014")
_LIMITS = """
SELECT set_config('statement_timeout', %(statement)s, true), set_config('lock_timeout', %(lock)s, true),
       set_config('idle_in_transaction_session_timeout', '5s', true)
"""


@contextmanager
def limited(
    connection: Connection[Any], statement: timedelta = STATEMENT, lock: timedelta = LOCK
) -> Iterator[Cursor[dict[str, Any]]]:
    """Open a transaction under its limits, and yield a cursor of dictionaries in it."""
    with connection.transaction():
        cursor = connection.cursor(row_factory=dict_row)
        cursor.execute(_LIMITS, {"statement": _ms(statement), "lock": _ms(min(lock, statement))})
        yield cursor


class Parts:
    """Reads parts from one connection, one after the other, until their time is up."""

    def __init__(self, connection: Connection[Any] | None, within: timedelta) -> None:
        self._connection = connection
        self._ends = time.monotonic() + within.total_seconds()
        #: What could not be read.
        self.problems: list[Problem] = []
        #: Whether a part had waited for a lock, or for its statement, until its time was up.
        self.waited = False

    def read(self, subject: str, part: Callable[[Cursor[dict[str, Any]]], T], empty: T) -> T:
        """Return what a part reads; `empty` where it cannot be read, which is a problem then."""
        if self._connection is None or self._connection.closed:
            return empty
        if self.left <= timedelta(0):
            self.problems.append(Problem(subject, "not read: PostgreSQL is slow, and its time was up", _SLOW))
            return empty
        try:
            with limited(self._connection, min(STATEMENT, self.left)) as cursor:
                return part(cursor)
        except psycopg.Error as error:
            self._fail(subject, error)
            return empty

    @property
    def left(self) -> timedelta:
        """The time that is left for all parts together."""
        return timedelta(seconds=self._ends - time.monotonic())

    def _fail(self, subject: str, error: psycopg.Error) -> None:
        failure = describe(error)
        self.waited = self.waited or failure.sqlstate in WAITED
        remedy = "`sb-worker check` says what is wrong with PostgreSQL"
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            remedy = "`sb-worker check` prints the GRANT that is missing"
        elif isinstance(error, (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn)):
            remedy = "bring our schema up to date: `sb-worker migrate`"
        elif failure.sqlstate in WAITED:
            remedy = _SLOW
        self.problems.append(Problem(subject, f"cannot be read: {' '.join(filter(None, failure))}", remedy))


_SLOW = "see who holds locks, or loads the server, in pg_stat_activity; then ask again"


def _ms(length: timedelta) -> str:
    return str(max(1, length // timedelta(milliseconds=1)))
