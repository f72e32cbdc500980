"""The statements of scans, made from what differs between sweepers: the table, what is due, the change."""

from __future__ import annotations

from typing import LiteralString, NamedTuple

#: How long a statement waits for a row that somebody else is writing before the step is done again around such rows,
#: milliseconds: longer than most writes of one row, too short for anybody to notice that we hold others meanwhile.
LOCK_WAIT: LiteralString = "5"


class PageSql(NamedTuple):
    """One sweep's two ways through a range of pages, from `%(start)s` to before `%(stop)s`."""

    #: Find the first row that is due, and change all that are due on the `%(span)s` pages from there. Each row is
    #: written once; a row that somebody else holds ends the statement by lock_timeout. Answers with `stop`, how far it
    #: came, or NULL when nothing is due in the range.
    direct: LiteralString
    #: Lock at most `%(limit)s` rows that are due and free, then change those: two writes a row, but nobody is waited
    #: for, and one row can be singled out. With `%(look)s` only find. Answers with the `last` row that it found.
    gentle: LiteralString


def _strength(change: LiteralString) -> LiteralString:
    """Return the weakest lock of a row that suffices for a change."""
    return "UPDATE" if change.startswith("DELETE") else "NO KEY UPDATE"


def page_sql(
    table: LiteralString,
    *,
    due: LiteralString,
    change: LiteralString,
    returning: LiteralString = "1",
    counted: LiteralString = "",
) -> PageSql:
    """Return the statements that make the `change` to the rows that are `due`.

    `change` is an UPDATE up to its SET list or a DELETE up to its table; `counted` has further aggregates over what is
    `returning` of the rows changed. Both answer with one row: how many rows they `found`, and counts, `changed` among
    them; `skipped_locked` are those that others held.

    `due` is judged by the statement that changes: the api may win until then. **It must not fit any index**: with
    statistics from before a big change the planner would read a whole index for every range of pages, and never come
    to its end. So a timestamp is written `column + interval '0'` and a text `column || ''`.
    """
    direct = f"""
WITH waits AS MATERIALIZED (
    SELECT usual, set_config('lock_timeout', '{LOCK_WAIT}', true)
      FROM (SELECT current_setting('lock_timeout') AS usual OFFSET 0) AS before
), first AS MATERIALIZED (
    SELECT ctid AS start,
           least(format('(%%s,0)', (ctid::text::point)[0]::bigint + %(span)s)::tid, %(stop)s::tid) AS stop
      FROM {table}
     WHERE ctid >= %(start)s::tid AND ctid < %(stop)s::tid AND {due}
     LIMIT 1
), changed AS (
    {change}
     WHERE ctid >= (SELECT start FROM first, waits) AND ctid < (SELECT stop FROM first) AND {due}
 RETURNING {returning}
), counts AS MATERIALIZED (
    SELECT count(*) AS changed{counted} FROM changed
)
SELECT changed AS found, (SELECT stop::text FROM first) AS stop, 0 AS skipped_locked, counts.*
  FROM counts
 WHERE set_config('lock_timeout', (SELECT usual FROM waits WHERE changed >= 0), true) IS NOT NULL
"""  # noqa: S608 - all its parts are literals
    gentle = f"""
WITH due AS MATERIALIZED (
    SELECT ctid FROM {table}
     WHERE ctid >= %(start)s::tid AND ctid < %(stop)s::tid AND {due}
     LIMIT %(limit)s
), held AS MATERIALIZED (
    SELECT ctid FROM {table}
     WHERE NOT %(look)s AND ctid = ANY (ARRAY(SELECT ctid FROM due)) AND {due}
       FOR {_strength(change)} SKIP LOCKED
), changed AS (
    {change}
     WHERE ctid = ANY (ARRAY(SELECT ctid FROM held)) AND {due}
 RETURNING {returning}
), counts AS MATERIALIZED (
    SELECT count(*) AS changed{counted} FROM changed
)
SELECT (SELECT count(*) FROM due) AS found, (SELECT max(ctid)::text FROM due) AS last,
       greatest((SELECT count(*) FROM due) - (SELECT count(*) FROM held), 0) AS skipped_locked, counts.*
  FROM counts
"""  # noqa: S608 - all its parts are literals
    return PageSql(direct, gentle)


def keyset_sql(
    table: LiteralString,
    *,
    column: LiteralString,
    change: LiteralString,
    still: LiteralString = "true",
    before: LiteralString = "<=",
) -> LiteralString:
    """Return the statement of an index scan: the `change` to rows whose `column` is `before` the cutoff.

    The index is one on that column, of the rows for which `still` holds. Both are judged again by the statement that
    changes; rows that somebody else holds are left to the next run. The answer's `last` is a text: Python has no time
    before the year 1, and none without an end.
    """
    return f"""
WITH due AS MATERIALIZED (
    SELECT id, {column} AS key FROM {table}
     WHERE {still} AND {column} >= %(after)s::timestamptz AND {column} {before} %(cutoff)s
     ORDER BY {column}, id
    OFFSET %(skip)s
     LIMIT %(limit)s
), held AS MATERIALIZED (
    SELECT id FROM {table}
     WHERE NOT %(look)s AND id = ANY (ARRAY(SELECT id FROM due)) AND {still} AND {column} {before} %(cutoff)s
       FOR {_strength(change)} SKIP LOCKED
), changed AS (
    {change}
     WHERE id = ANY (ARRAY(SELECT id FROM held)) AND {still} AND {column} {before} %(cutoff)s
 RETURNING 1
)
SELECT count(*) AS found, max(key)::text AS last, (SELECT count(*) FROM changed) AS changed,
       greatest(count(*) - (SELECT count(*) FROM held), 0) AS skipped_locked
  FROM due
"""  # noqa: S608 - all its parts are literals
