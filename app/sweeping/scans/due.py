"""What of a table is due: how many rows, and since when, as far as that is found out cheaply.

By the condition of the sweep itself. Many look at this, and none of them may cost the api's database what a sweep
costs: a large table without an index for the sweep is not read.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from app.storage.postgres import only_row
from app.sweeping.scans.tables import INDEXED, LARGE, PAGES, Index

if TYPE_CHECKING:
    from collections.abc import Mapping

    from psycopg import Cursor

#: Rows that are counted; of more it is known that there are more.
MOST_COUNTED = 10_000
# PostgreSQL's years reach from 4713 BC to 294276, Python's from 1 to 9999: what lies outside is known as about there.
_EARLIEST: LiteralString = "timestamptz '0001-01-02 00:00:00+00'"
_LATEST: LiteralString = "timestamptz '9999-12-30 00:00:00+00'"


class Backlog(NamedTuple):
    """Rows that are due and not swept yet, and since when the oldest of them is; times aware, UTC."""

    rows: int
    since: datetime | None
    #: Whether there are more rows than were counted.
    more: bool = False


@dataclass(frozen=True)
class Due:
    """The rows of a table that a sweep would change now.

    `condition` is SQL that may name `%(cutoff)s` and `words`; `since` is the moment since when a row would be due if
    nothing were left to wait for, and `older_than` how long is waited then.
    """

    table: LiteralString
    condition: LiteralString
    since: LiteralString
    older_than: timedelta = timedelta(0)
    #: Without which a large table is not read; None where `condition` and `since` fit an index of the api's.
    index: Index | None = None
    #: Whether an index serves the condition in any case.
    indexed: bool = False
    words: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))

    def older(self, older_than: timedelta) -> Due:
        """Return the same for a sweep that waits for so long."""
        return replace(self, older_than=older_than)

    def by(self, index: Index) -> Due:
        """Return the same for a sweep that an operator may add an index for."""
        return replace(self, index=index)

    def count(self, cursor: Cursor[dict[str, Any]]) -> Backlog | None:
        """Count what is due, in a transaction whose limits the caller has set; None when that would take long."""
        if not self._cheap(cursor):
            return None
        counted: LiteralString = f"""
SELECT count(*) AS rows, CASE WHEN count(since) > 0 THEN least(min(since) + %(older_than)s, {_LATEST}) END AS since
  FROM (SELECT CASE WHEN isfinite({self.since}) THEN least(greatest({self.since}, {_EARLIEST}), {_LATEST})
                END AS since FROM {self.table}
         WHERE {self.condition} ORDER BY {self.since} LIMIT %(most)s) AS due
"""  # noqa: S608 - all its parts are literals
        now = only_row(cursor.execute("SELECT now() AS now"))["now"]
        words = {**self.words, "cutoff": now - self.older_than, "older_than": self.older_than}
        row = only_row(cursor.execute(counted, {**words, "most": MOST_COUNTED + 1}))
        return Backlog(min(row["rows"], MOST_COUNTED), row["since"], more=row["rows"] > MOST_COUNTED)

    def at_most(self, cursor: Cursor[dict[str, Any]], most: int) -> int:
        """Return how many rows are due, counted up to this number, whatever that takes: the caller limits it."""
        counted: LiteralString = f"""
SELECT count(*) AS rows FROM (SELECT FROM {self.table} WHERE {self.condition} LIMIT %(most)s) AS due
"""  # noqa: S608 - all its parts are literals
        now = only_row(cursor.execute("SELECT now() AS now"))["now"]
        words = {**self.words, "cutoff": now - self.older_than, "most": most}
        return int(only_row(cursor.execute(counted, words))["rows"])

    def _cheap(self, cursor: Cursor[dict[str, Any]]) -> bool:
        if self.indexed or only_row(cursor.execute(PAGES, {"table": self.table}))["pages"] < LARGE:
            return True
        return self.index is not None and bool(only_row(cursor.execute(INDEXED, self.index._asdict()))["indexed"])
