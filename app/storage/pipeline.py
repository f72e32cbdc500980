"""A transaction in few round trips: what need not wait for an answer is sent together, in pipeline mode.

While a pipeline is under way the server does not count as idle, so that `idle_in_transaction_session_timeout` ends no
transaction whose client falls silent in the middle of one. `transaction_timeout` does, which PostgreSQL has from 17 on:
a server that is older is asked one thing after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Self

import psycopg
from psycopg.pq import TransactionStatus

if TYPE_CHECKING:
    from types import TracebackType

    from psycopg import Connection


#: The first server that ends a transaction whatever its client does.
BOUNDS_TRANSACTIONS = 170_000


class PipelinedTransaction:
    """A transaction that begins, goes on and ends in one round trip each; rolled back if it does not come to its end.

    What is executed in one of its blocks is only sent. Answers are there to be read once the block has ended, which
    raises the first error; to read one within the block is to wait for it.
    """

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._connection.closed and self._connection.info.transaction_status != TransactionStatus.IDLE:
            with suppress(psycopg.Error):  # the pool gives up a connection that is still in a transaction
                self._connection.rollback()

    def _pipeline(self) -> AbstractContextManager[object]:
        bounded = self._connection.info.server_version >= BOUNDS_TRANSACTIONS
        return self._connection.pipeline() if bounded else nullcontext()

    @contextmanager
    def begin(self) -> Iterator[None]:
        """Begin, and send what the block executes."""
        with self._pipeline():
            self._connection.execute("BEGIN", prepare=False)
            yield

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Begin, send what the block executes, and commit."""
        with self.begin():
            yield
            self._connection.execute("COMMIT", prepare=False)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Send what the block executes."""
        with self._pipeline():
            yield

    @contextmanager
    def commit(self) -> Iterator[None]:
        """Send what the block executes, and commit. An error anywhere commits nothing."""
        with self._pipeline():
            yield
            self._connection.execute("COMMIT", prepare=False)
