"""What can go wrong, by name.

WorkerError
├── ConfigError    settings that no process may start with
├── BootError      a server that is needed does not answer, or refuses us
├── SchemaError    our own tables are missing and may not be created
├── LeaseLost      the Redis lock of a running sweep is gone
│   └── Fenced     and a newer run has begun
├── NotDue         the tick is not for us: superseded, from the future, or its table is missing
├── PartlyFailed   some of a run's targets failed, the others are done
└── SweepFailed    a run ended by an error; carries a class name and an SQLSTATE, never a text

Texts of these errors may be logged as they are. Texts of any other exception may not: a driver's message can
quote a row, a URL or a statement. `describe` is the one way from a foreign exception to a log line.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import psycopg


class WorkerError(Exception):
    """Base of everything this worker raises on purpose."""


class ConfigError(WorkerError):
    """Settings that no process may start with, all of them, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class BootError(WorkerError):
    """A server that this process needs does not answer or refuses us; the text says which and what to do."""


class SchemaError(WorkerError):
    """Our own schema is not there and this role may not create it; `sql` is what someone else has to run."""

    def __init__(self, message: str, sql: str = "") -> None:
        super().__init__(message)
        self.sql = sql


class LeaseLost(WorkerError):
    """The lock is gone or could not be renewed in time: nothing more may be done by this run."""


class Fenced(LeaseLost):
    """A newer run has moved the fence: this one's batch was refused by PostgreSQL."""


class PartlyFailed(WorkerError):
    """Some of the run's targets failed; the others are done and committed."""


class Reason(StrEnum):
    """Why a tick was not run."""

    SUPERSEDED = "superseded"
    FUTURE = "future"
    TABLE_MISSING = "table_missing"


class NotDue(WorkerError):
    """The tick asked for nothing that is to be done now."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class Failure(NamedTuple):
    """An error reduced to what may be shown: a class name and, from PostgreSQL, an SQLSTATE."""

    error: str
    sqlstate: str | None = None


class SweepFailed(WorkerError):
    """A run ended by an error."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error if failure.sqlstate is None else f"{failure.error} {failure.sqlstate}")
        self.failure = failure


def describe(error: BaseException) -> Failure:
    """Reduce any exception to its class name and SQLSTATE; its text is never looked at."""
    sqlstate = error.sqlstate if isinstance(error, psycopg.Error) else None
    return Failure(type(error).__name__, sqlstate)
