"""The newest version of our schema only adds: the release before goes on beside it, and locks are short."""

from __future__ import annotations

import re
from typing import Any

import pytest
from psycopg import Connection

from app.storage import migrations
from tests.support.rows import column

LEDGER_ROWS = 1_000_000
NAME = r"secrets_bridge_worker\.(?P<table>\w+)"
#: Whatever a new release may do to a table that the one before uses: a column that is empty, or has a constant in all
#: rows, is added without looking at any row. All else rewrites, scans, or takes away.
COLUMN = re.compile(r"ADD COLUMN \w+\s+[a-z]+( NOT NULL DEFAULT (\d+|'[^']*'|true|false))?")

_FILL = """
INSERT INTO secrets_bridge_worker.sweep_run (name, slot, token, worker, started_at, finished_at, outcome)
SELECT 'wraps-expired', to_timestamp(n), n, 'w', to_timestamp(n), to_timestamp(n), 'success'
  FROM generate_series(1, %s) AS n
"""
# Files of tables and indexes: another one is a table that was written anew.
_FILES = """
SELECT relname, pg_relation_filenode(oid) FROM pg_class
 WHERE relnamespace = to_regnamespace('secrets_bridge_worker') AND relkind IN ('r', 'i')
"""
_SCANS = """
SELECT relname, seq_scan FROM pg_stat_user_tables
 WHERE schemaname = 'secrets_bridge_worker' AND relname IN ('sweep_run', 'notification_event', 'notification_delivery')
"""
_WRITTEN = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"


def faults(version: str) -> list[str]:
    """Return the statements of a version that are none of those that the release before and its rows bear."""
    statements = [" ".join(one.split()) for one in re.findall(r"(?:[^;']|'[^']*')+", version) if one.strip()]
    made = {match["table"] for one in statements if (match := re.match(rf"CREATE TABLE {NAME}", one))}
    return [one for one in statements if not _is_additive(one, made)]


def _is_additive(statement: str, made: set[str]) -> bool:
    if re.match(rf"CREATE TABLE {NAME}", statement):
        return {match["table"] for match in re.finditer(rf"REFERENCES {NAME}", statement)} <= made
    if match := re.match(rf"CREATE (UNIQUE )?INDEX \w+ ON {NAME}", statement):
        return match["table"] in made
    if match := re.match(rf"ALTER TABLE {NAME} (?P<actions>.+)", statement):
        return all(COLUMN.fullmatch(action.strip()) for action in match["actions"].split(","))
    return statement.startswith("COMMENT ON ")


def test_every_statement_of_the_newest_version_only_adds() -> None:
    assert faults(migrations._VERSIONS[-1]) == []


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE secrets_bridge_worker.sweep_run DROP COLUMN worker",
        "ALTER TABLE secrets_bridge_worker.sweep_run RENAME COLUMN worker TO host",
        "ALTER TABLE secrets_bridge_worker.sweep_run ALTER COLUMN worker TYPE varchar",
        "ALTER TABLE secrets_bridge_worker.sweep_run ADD COLUMN x text NOT NULL",
        "ALTER TABLE secrets_bridge_worker.sweep_run ADD COLUMN x uuid NOT NULL DEFAULT gen_random_uuid()",
        "ALTER TABLE secrets_bridge_worker.sweep_run ADD COLUMN a text, ADD CHECK (a <> '')",
        "CREATE INDEX slow ON secrets_bridge_worker.sweep_run (worker)",
        "CREATE TABLE secrets_bridge_worker.n (id bigint REFERENCES secrets_bridge_worker.sweep_run)",
        "DROP INDEX secrets_bridge_worker.sweep_run_once",
        "UPDATE secrets_bridge_worker.sweep_run SET worker = ''",
    ],
)
def test_what_would_take_away_or_look_at_rows_is_known_as_such(statement: str) -> None:
    assert faults(f"COMMENT ON TABLE secrets_bridge_worker.x IS 'y';\n{statement};") == [statement]


def to_version(sql: Connection[Any], number: int) -> None:
    sql.execute("DROP SCHEMA secrets_bridge_worker CASCADE")
    sql.execute(migrations._BOOTSTRAP.encode())
    for version, text in enumerate(migrations._VERSIONS[:number], 1):
        sql.execute(text.encode())
        sql.execute("INSERT INTO secrets_bridge_worker.schema_version (version) VALUES (%s)", [version])


def upgraded(sql: Connection[Any]) -> int:
    """Upgrade; return how many bytes of PostgreSQL's log that took."""
    before = column(sql, _WRITTEN)[0]
    assert migrations.migrate(sql) == migrations.VERSION
    sql.execute("SELECT pg_stat_force_next_flush()")
    return int(column(sql, _WRITTEN)[0] - before)


def looked_up(sql: Connection[Any], query: str) -> dict[str, int]:
    return dict(sql.execute(query.encode()).fetchall())


def test_a_large_ledger_is_neither_rewritten_nor_read(sql: Connection[Any]) -> None:
    """An upgrade that touches no row holds its locks as long on a large ledger as on an empty one."""
    to_version(sql, migrations.VERSION - 1)
    on_an_empty_one = upgraded(sql)
    to_version(sql, migrations.VERSION - 1)
    sql.execute(_FILL, [LEDGER_ROWS])
    sql.execute("SELECT pg_stat_force_next_flush()")
    files, scans = looked_up(sql, _FILES), looked_up(sql, _SCANS)
    on_a_large_one = upgraded(sql)
    assert files.items() <= looked_up(sql, _FILES).items()
    assert looked_up(sql, _SCANS) == scans
    assert len(scans) == 3
    assert on_a_large_one < 2 * on_an_empty_one + 1_000_000  # a checkpoint in between costs whole pages of the catalog
