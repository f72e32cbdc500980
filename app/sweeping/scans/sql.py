"""The statements of scans, made from what differs between sweepers: the table, what is due, the change."""

from __future__ import annotations

from typing import LiteralString, NamedTuple

from app.sweeping.scans.due import Due

#: How long a statement waits for a row that somebody else is writing before the step is done again around such rows,
#: milliseconds: longer than most writes of one row, too short for anybody to notice that we hold others meanwhile.
LOCK_WAIT: LiteralString = "5"


class PageSql(NamedTuple):
    """One sweep's ways through a range of pages, from `%(start)s` to before `%(stop)s`."""

    #: Change all that are due. Each row is written once; one that somebody else holds ends the statement by
    #: lock_timeout. Answers with counts, or with its number of rows alone.
    whole: LiteralString
    #: Change at most `%(limit)s` rows that are due, each written once as well. Answers with the `last` that it found.
    listed: LiteralString
    #: The same for those that are free, as far as there are any: they are locked first, which is a second write, but
    #: nobody is waited for, and one row can be singled out. With `%(passing)s` only find.
    gentle: LiteralString
    #: Find the `first` row that is due, NULL if there is none.
    look: LiteralString
    #: What is due, to be counted.
    due: Due


class KeysetSql(NamedTuple):
    """One sweep's two ways through an index, from `%(after)s` to `%(cutoff)s`, at most `%(limit)s` rows; as above."""

    listed: LiteralString | None
    gentle: LiteralString
    #: What is due, to be counted.
    due: Due


def _strength(change: LiteralString) -> LiteralString:
    """Return the weakest lock of a row that suffices for a change."""
    return "UPDATE" if change.startswith("DELETE") else "NO KEY UPDATE"


def page_sql(  # noqa: PLR0913 - what a sweep by pages is
    table: LiteralString,
    *,
    due: LiteralString,
    since: LiteralString,
    change: LiteralString,
    returning: LiteralString = "1",
    counted: LiteralString = "",
) -> PageSql:
    """Return the statements that make the `change` to the rows that are `due`, and the moment `since` when they are.

    `change` is an UPDATE up to its SET list or a DELETE up to its table; `counted` has further aggregates over what is
    `returning` of the rows changed. Those that answer with one row have how many rows they `found`, and counts,
    `changed` among them; `skipped_locked` are those that others held.

    `due` is judged by the statement that changes: the api may win until then. It is written so that it fits no index:
    with statistics from before a big change the planner would read a whole index for every range of pages, and never
    come to its end.
    """
    backlog = Due(table, due, since)
    due = _fitting_no_index(due)
    pages: LiteralString = "ctid >= %(start)s::tid AND ctid < %(stop)s::tid"
    found: LiteralString = f"""
    SELECT ctid FROM {table} WHERE {pages} AND {due} LIMIT %(limit)s"""  # noqa: S608
    held: LiteralString = f"""
    SELECT ctid FROM {table}
     WHERE NOT %(passing)s AND ctid = ANY (ARRAY(SELECT ctid FROM due)) AND {due}
       FOR {_strength(change)} SKIP LOCKED"""  # noqa: S608
    return PageSql(
        whole=_counting(f"{change} WHERE {pages} AND {due}", returning, counted),
        listed=_bounded(found, "max(ctid)", "", change, "ctid", due, returning, counted),
        gentle=_bounded(found, "max(ctid)", held, change, "ctid", due, returning, counted),
        look=f"SELECT (SELECT ctid::text FROM {table} WHERE {pages} AND {due} LIMIT 1) AS first",  # noqa: S608
        due=backlog,
    )


def keyset_sql(  # noqa: PLR0913 - what a sweep by an index is
    table: LiteralString,
    *,
    column: LiteralString,
    change: LiteralString,
    still: LiteralString = "true",
    before: LiteralString = "<=",
    returning: LiteralString = "1",
    counted: LiteralString = "",
) -> KeysetSql:
    """Return the statements of an index scan: the `change` to rows whose `column` is `before` the cutoff.

    The index is one on that column, of the rows for which `still` holds. Both are judged again by the statement that
    changes. Rows of one key come in the order of their places, as the index has them: to sort them would take longer
    with each row that has the key. The answer's `last` is a text: Python has no time before the year 1, and none
    without an end.
    """
    due: LiteralString = f"{still} AND {column} {before} %(cutoff)s"
    found: LiteralString = f"""
    SELECT id, ctid, {column} AS key FROM {table}
     WHERE {still} AND {column} >= %(after)s::timestamptz AND {column} {before} %(cutoff)s
     ORDER BY {column}
    OFFSET %(skip)s
     LIMIT %(limit)s"""  # noqa: S608
    held: LiteralString = f"""
    SELECT id FROM {table}
     WHERE NOT %(passing)s AND id = ANY (ARRAY(SELECT id FROM due)) AND {due}
       FOR {_strength(change)} SKIP LOCKED"""  # noqa: S608
    backlog = Due(table, due, column, indexed=True)
    due = _fitting_no_index(due)
    return KeysetSql(
        listed=_bounded(found, "max(key)", "", change, "ctid", due, returning, counted),
        gentle=_bounded(found, "max(key)", held, change, "id", due, returning, counted),
        due=backlog,
    )


def sweep_sql(  # noqa: PLR0913 - what a sweep is that an index may serve
    table: LiteralString,
    *,
    column: LiteralString,
    change: LiteralString,
    still: LiteralString = "true",
    before: LiteralString = "<=",
    returning: LiteralString = "1",
    counted: LiteralString = "",
) -> tuple[PageSql, KeysetSql]:
    """Return the statements of one sweep by pages and by an index, where an operator may add that; as above."""
    due: LiteralString = f"{still} AND {column} {before} %(cutoff)s"
    return (
        page_sql(table, due=due, since=column, change=change, returning=returning, counted=counted),
        keyset_sql(
            table, column=column, change=change, still=still, before=before, returning=returning, counted=counted
        ),
    )


def _fitting_no_index(condition: LiteralString) -> LiteralString:
    return f"({condition}) IS TRUE"


def _counting(change: LiteralString, returning: LiteralString, counted: LiteralString) -> LiteralString:
    """Return the change with a row of counts, where its number of rows is not all that is asked for."""
    if not counted:
        return change
    return f"""
WITH changed AS (
    {change} RETURNING {returning}
)
SELECT count(*) AS changed{counted} FROM changed
"""  # noqa: S608 - all its parts are literals


def _bounded(  # noqa: PLR0913, PLR0917 - the parts of the statement
    found: LiteralString,
    last: LiteralString,
    held: LiteralString,
    change: LiteralString,
    key: LiteralString,
    due: LiteralString,
    returning: LiteralString,
    counted: LiteralString,
) -> LiteralString:
    """Return a statement that changes the rows that are found, or those of them that are held, by their `key`."""
    chosen: LiteralString = "held" if held else "due"
    free: LiteralString = f", held AS MATERIALIZED ({held}\n)" if held else ""
    skipped: LiteralString = "greatest((SELECT count(*) FROM due) - (SELECT count(*) FROM held), 0)" if held else "0"
    return f"""
WITH due AS MATERIALIZED (
    {found}
){free}, changed AS (
    {change}
     WHERE {key} = ANY (ARRAY(SELECT {key} FROM {chosen})) AND {due}
 RETURNING {returning}
), counts AS MATERIALIZED (
    SELECT count(*) AS changed{counted} FROM changed
)
SELECT (SELECT count(*) FROM due) AS found, (SELECT {last}::text FROM due) AS last, {skipped} AS skipped_locked,
       counts.*
  FROM counts
"""  # noqa: S608 - all its parts are literals
