"""What PostgreSQL refuses: whose fault it is, and how to go on without what was refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import psycopg

from app.core.errors import Failure, describe
from app.sweeping.strategy import Run

R = TypeVar("R")

#: By whose fault a statement was given up: the lease is gone or its time is up; and somebody holds what it waits for.
SLOW, HELD = (psycopg.errors.QueryCanceled,), (psycopg.errors.LockNotAvailable,)
#: Classes of SQLSTATEs that are not about the rows at hand, but about the statement, its role or the server.
_NOT_BY_ROWS = frozenset({"08", "0A", "25", "26", "28", "3D", "3F", "42", "53", "57", "58"})


def by_rows(error: psycopg.Error) -> bool:
    """Return whether fewer rows, or others, may fare better.

    Who has waited in vain and names no row, nor a trigger, in the error's context has waited for the whole table.
    """
    table_is_locked = isinstance(error, HELD) and error.diag.context is None
    return (error.sqlstate or "08")[:2] not in _NOT_BY_ROWS and not table_is_locked


def step_aside(run: Run, work: Callable[[], R], *, raises: tuple[type[psycopg.Error], ...] = SLOW) -> R | Failure:
    """Do work that may fail without harm to the rest of the step; return its failure when PostgreSQL refuses its rows.

    What it would refuse whatever the rows is raised, and what is among `raises`.
    """
    connection = run.cursor.connection
    try:
        with connection.transaction():
            return work()
    except psycopg.DatabaseError as error:
        if connection.closed or isinstance(error, raises) or not (isinstance(error, SLOW) or by_rows(error)):
            raise
        return describe(error)
