"""How history is read: in one transaction that writes nothing, sees one moment, and is in nobody's way for long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, LiteralString

from psycopg.rows import dict_row

if TYPE_CHECKING:
    from psycopg import Connection, Cursor

_ONE_MOMENT: LiteralString = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
# The ledger is read by its indexes: nobody has promised statistics of it.
_LIMITS: LiteralString = """
SELECT set_config('statement_timeout', '5s', true), set_config('lock_timeout', '2s', true),
       set_config('idle_in_transaction_session_timeout', '30s', true), set_config('enable_seqscan', 'off', true),
       set_config('max_parallel_workers_per_gather', '0', true)
"""


@contextmanager
def looking_back(connection: Connection[Any]) -> Iterator[Cursor[dict[str, Any]]]:
    """Open such a transaction and yield a cursor of dictionaries in it."""
    with connection.transaction():
        cursor = connection.cursor(row_factory=dict_row)
        cursor.execute(_ONE_MOMENT)
        cursor.execute(_LIMITS)
        yield cursor
