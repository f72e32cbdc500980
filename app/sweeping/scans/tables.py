"""What is asked of a table before it is read: is it there, how large is it, has it an index for the sweep."""

from __future__ import annotations

from typing import LiteralString, NamedTuple

#: A table of fewer pages is read in one statement of some milliseconds: no index is looked for.
LARGE = 2_500

# How large a table `swept` of pg_class is. Of a partitioned one the largest partition counts, since a range is one of
# all of them.
PAGES_OF_SWEPT: LiteralString = """
       CASE swept.relkind WHEN 'p' THEN (SELECT max(pg_relation_size(relid)) FROM pg_partition_tree(swept.oid))
            ELSE pg_relation_size(swept.oid) END / current_setting('block_size')::int"""
PAGES: LiteralString = f"""
SELECT coalesce(max({PAGES_OF_SWEPT}), 0) AS pages
  FROM pg_class AS swept WHERE swept.oid = to_regclass(%(table)s)
"""  # noqa: S608 - all its parts are literals


def is_there(relation: LiteralString) -> LiteralString:
    """Return the condition that a table, or a `table.column`, is there; `relation` is SQL that names it."""
    return f"""
       EXISTS (SELECT FROM pg_attribute
                WHERE attrelid = to_regclass(split_part({relation}, '.', 1)) AND NOT attisdropped
                  AND split_part({relation}, '.', 2) IN ('', attname))"""


INDEXED: LiteralString = """
SELECT EXISTS (
       SELECT FROM pg_index
         JOIN pg_class AS named ON named.oid = indexrelid
         JOIN pg_am ON pg_am.oid = relam AND amname = 'btree'
         JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
        WHERE indrelid = to_regclass(%(table)s) AND indisvalid AND attname = %(column)s
          AND coalesce(pg_get_expr(indpred, indrelid), '') = %(only)s) AS indexed
"""


class Index(NamedTuple):
    """An index by which a sweep finds what is due, and nothing else, in the order of its keys."""

    table: str
    column: str
    #: The rows that are in it, as PostgreSQL writes a condition; empty for all.
    only: str = ""

    @property
    def statement(self) -> str:
        """The statement that makes it, which is the operator's to execute: the table is the api's."""
        only = f" WHERE {self.only}" if self.only else ""
        return f"CREATE INDEX CONCURRENTLY {self.table}_worker_idx ON {self.table} ({self.column}){only};"
