"""A connection on which nothing is waited for without end.

A server's own limits (`statement_timeout`) end nothing when the server is what has gone silent: a frozen host, a lost
NAT entry, a stalled proxy. So each wait has a deadline on this process's clock; past it the socket is shut, which
wakes whoever reads it, and the connection is gone. Its siblings in the pool are likely to lead to the same place, so
all of them are replaced.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
import structlog
from psycopg import Connection
from psycopg.rows import RowFactory, tuple_row

from app.core import metrics
from app.core.errors import describe
from app.storage.bounded_values import read_within_bounds

if TYPE_CHECKING:
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn

log = structlog.get_logger("postgres")

T = TypeVar("T")

#: The longest wait for an answer, where nothing shorter is asked for.
ANSWER_WITHIN = timedelta(seconds=10)
#: Answers after which a connection is of no use, although it works: the server has become a standby.
_LEAVE = (psycopg.errors.ReadOnlySqlTransaction,)


class BoundedConnection(Connection[Any]):
    """A connection whose every wait ends within `answer_within` seconds, by closing it if need be."""

    answer_within: float = ANSWER_WITHIN.total_seconds()
    #: When it was made, and when it last gave an answer, by the monotonic clock, seconds.
    made_at: float = 0.0
    answered_at: float = 0.0
    #: Called with this connection when it had to be given up.
    on_loss: Callable[[BoundedConnection], None] | None = None
    #: Called after each answer.
    on_answer: Callable[[], None] | None = None

    def __init__(self, pgconn: PGconn, row_factory: RowFactory[Any] = tuple_row) -> None:
        super().__init__(pgconn, row_factory)
        read_within_bounds(self)

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Consume a generator of the protocol. Raises psycopg.OperationalError when no answer came in time."""
        limit = self.answer_within if timeout is None else min(timeout, self.answer_within)
        started = time.monotonic()
        try:
            answer = super().wait(gen, interval, limit)
        except _LEAVE as error:
            self._lose("standby", error)
            raise
        except psycopg.OperationalError as error:
            if timeout is None and not self.closed and time.monotonic() - started >= limit:
                shut(self)
                self.pgconn.finish()
                self._lose("silent", error)
                raise psycopg.OperationalError("no answer in time") from None
            raise
        self.answered_at = time.monotonic()
        if self.on_answer is not None:
            self.on_answer()
        return answer

    def _lose(self, reason: str, error: Exception) -> None:
        metrics.CONNECTIONS_LOST.labels(reason).inc()
        log.warning("PostgreSQL connection given up", reason=reason, **describe(error)._asdict())
        if self.on_loss is not None:
            self.on_loss(self)


def shut(connection: Connection[Any]) -> None:
    """Shut a connection's socket, from any thread: whoever waits for an answer on it wakes up with an error."""
    # On a copy of the descriptor: the connection's own may be closed, and its number reused, meanwhile.
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as copy:
        copy.shutdown(socket.SHUT_RDWR)
