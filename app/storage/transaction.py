"""The outbox's one way into a transaction: under limits, so that nothing in it waits for ever.

The limits are the transaction's own: those of a session are refused, or shared with others, by a pooler.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from psycopg.rows import dict_row

if TYPE_CHECKING:
    from psycopg import Connection, Cursor

# A statement, or a wait for a lock, of five seconds is a fault. A process that is paused holds its locks no longer.
LIMITS = """
SELECT set_config('statement_timeout', '5s', true), set_config('idle_in_transaction_session_timeout', '5s', true)
"""


@contextmanager
def bounded(connection: Connection[Any]) -> Iterator[Cursor[dict[str, Any]]]:
    """Open a transaction under its limits and yield a cursor of dictionaries in it.

    Everything runs in a transaction: should a newer release change our tables under us, its end makes psycopg forget
    the statements that it has prepared, and the next attempt succeeds.
    """
    with connection.transaction():
        cursor = connection.cursor(row_factory=dict_row)
        cursor.execute(LIMITS)
        yield cursor
