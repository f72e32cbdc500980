"""What can go wrong, by name.

WorkerError
├── ConfigError      settings that no process may start with
├── BootError        a server that is needed does not answer, or refuses us
├── SchemaError      our own tables are missing and may not be created
├── LeaseLost        the Redis lock of a running sweep is gone
│   └── Fenced       and a newer run has begun
├── NotDue           the tick is not to be run: superseded, paused, braked, or its table is missing
├── PartlyFailed     some of a run's targets failed, the others are done
├── SweepFailed      a run ended by an error; carries a class name and an SQLSTATE, never a text
├── AddressBlocked   a host has no address that may be dialled
├── UnwrapFailed     an ArgoCD token could not be opened; the text says why, without a value
├── SinkRejected     a sink refused a notification for good
└── SinkUnavailable  a sink could not take a notification now; worth a retry

Texts of these errors may be logged as they are. Texts of any other exception may not: a driver's message can
quote a row, a URL or a statement. `describe` is the one way from a foreign exception to a log line.
"""

from __future__ import annotations

from enum import StrEnum
from math import isnan
from types import TracebackType
from typing import NamedTuple

import psycopg


class WorkerError(Exception):
    """Base of everything this worker raises on purpose."""


class ConfigError(WorkerError):
    """Settings that no process may start with: every problem, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class BootError(WorkerError):
    """A server that this process needs does not answer or refuses us; the text says which and what to do."""


class SchemaError(WorkerError):
    """Our own schema is missing and this role may not create it; `sql` is for a role that may."""

    def __init__(self, message: str, sql: str = "") -> None:
        super().__init__(message)
        self.sql = sql


class LeaseLost(WorkerError):
    """The lock is gone or could not be renewed in time: nothing more may be done by this run."""


class Fenced(LeaseLost):
    """A newer run has moved the fence: this one's batch was refused by PostgreSQL."""


class PartlyFailed(WorkerError):
    """Some of the run's targets failed; the others are done and committed."""


class UnwrapFailed(WorkerError):
    """An ArgoCD token could not be opened; the text says why and holds no value."""


class AddressBlocked(WorkerError):
    """A host has no address that may be dialled."""


class Reason(StrEnum):
    """Why a tick was not run."""

    SUPERSEDED = "superseded"
    TABLE_MISSING = "table_missing"
    PAUSED = "paused"
    BRAKED = "braked"


class NotDue(WorkerError):
    """The tick has nothing to run now."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class Fault(StrEnum):
    """Why an attempt to notify failed: a closed set, so that it can be a label. A server's own text cannot."""

    AUTH = "auth"
    RATE_LIMITED = "rate_limited"
    CLIENT_ERROR = "client_error"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    CONNECT = "connect"
    PROXY = "proxy"
    TLS = "tls"
    DNS = "dns"
    BLOCKED_ADDRESS = "blocked_address"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    TEMPLATE = "template"
    REFUSED_RECIPIENTS = "refused_recipients"
    PROTOCOL = "protocol"


class SinkRejected(WorkerError):
    """A sink refused a notification: no attempt will ever succeed.

    `code` is a status number or a word of the vendor's own closed vocabulary. `off` means that no other notification
    will be accepted either, until the configuration changes: the receiver is gone, or our credentials are bad.
    """

    def __init__(self, fault: Fault, code: str = "", *, off: bool = False) -> None:
        super().__init__(f"{fault} {code}".strip())
        self.fault, self.code, self.off = fault, code, off


#: Bounds the wait that a receiver may ask for, in seconds.
LONGEST_RETRY_AFTER = 3600.0


class SinkUnavailable(WorkerError):
    """A sink could not take a notification now. `retry_after` is the wait it asked for, in seconds, 0 to an hour."""

    def __init__(self, fault: Fault, code: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(f"{fault} {code}".strip())
        self.fault, self.code = fault, code
        if retry_after is not None:
            retry_after = None if isnan(retry_after) else min(max(retry_after, 0.0), LONGEST_RETRY_AFTER)
        self.retry_after = retry_after


class Failure(NamedTuple):
    """An error reduced to what may be shown: a class name and, from PostgreSQL, an SQLSTATE."""

    error: str
    sqlstate: str | None = None


class SweepFailed(WorkerError):
    """A run ended by an error."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error if failure.sqlstate is None else f"{failure.error} {failure.sqlstate}")
        self.failure = failure


def raised_at(trace: TracebackType | None) -> TracebackType | None:
    """Return the end of a traceback: where the error was raised."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def describe(error: BaseException) -> Failure:
    """Reduce any exception to its class name and SQLSTATE; its text is never read."""
    sqlstate = error.sqlstate if isinstance(error, psycopg.Error) else None
    return Failure(type(error).__name__, sqlstate)
