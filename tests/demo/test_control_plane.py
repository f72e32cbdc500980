"""The schema that the tests and the demo run on is the control plane's, fact by fact.

The facts were taken from a database that the api had migrated to version 38, for the tables that a worker touches;
they are read back here from the catalog of a database made with our own SQL.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection

FACTS = (Path(__file__).parent / "control_plane_facts.txt").read_text().splitlines()

READ = r"""
WITH touched AS (SELECT oid, relname AS name FROM pg_class
                  WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname = ANY (%(tables)s))
SELECT touched.name || '.' || attname || ' ' || format_type(atttypid, atttypmod)
       || CASE WHEN attnotnull THEN ' not null' ELSE '' END
       || coalesce(' default ' || pg_get_expr(adbin, adrelid), '')
  FROM touched JOIN pg_attribute ON attrelid = touched.oid AND attnum > 0 AND NOT attisdropped
  LEFT JOIN pg_attrdef ON adrelid = touched.oid AND adnum = attnum
UNION ALL
SELECT touched.name || ' constraint ' || conname || ': ' || pg_get_constraintdef(pg_constraint.oid)
  FROM touched JOIN pg_constraint ON conrelid = touched.oid AND contype <> 'n'
UNION ALL
SELECT touched.name || ' index ' || relname || ': ' || split_part(pg_get_indexdef(indexrelid), ' USING ', 2)
       || CASE WHEN indisunique THEN ' unique' ELSE '' END
  FROM touched JOIN pg_index ON indrelid = touched.oid JOIN pg_class ON pg_class.oid = indexrelid
 WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid AND conrelid = touched.oid)
UNION ALL
SELECT touched.name || ' trigger ' || tgname || ': ' || split_part(pg_get_triggerdef(pg_trigger.oid), tgname || ' ', 2)
  FROM touched JOIN pg_trigger ON tgrelid = touched.oid AND NOT tgisinternal
"""


def read(sql: Connection[Any]) -> set[str]:
    tables = sorted({line.split()[0].partition(".")[0] for line in FACTS})
    return {row[0] for row in sql.execute(READ.encode(), {"tables": tables})}


def test_every_fact_is_there_and_no_other(sql: Connection[Any]) -> None:
    there = read(sql)
    assert sorted(set(FACTS) - there) == []
    assert sorted(there - set(FACTS)) == []
    assert len(FACTS) > 200


@pytest.mark.parametrize(
    "change",
    [
        "DROP INDEX secret_wraps_active_idx",
        "ALTER TABLE agents ALTER last_seen_at SET NOT NULL",
        "ALTER TABLE sync_jobs DROP CONSTRAINT sync_jobs_status_check",
        "DROP TRIGGER secrets_touch_updated_at ON secrets",
    ],
)
def test_a_difference_is_seen(sql: Connection[Any], change: str) -> None:
    sql.execute(change.encode())
    assert read(sql) != set(FACTS)


def test_updated_rows_carry_the_time_of_their_update(sql: Connection[Any]) -> None:
    sql.execute("INSERT INTO agents (name, secret_hash, updated_at) VALUES ('a', '\\x01', '2020-01-01')")
    sql.execute("UPDATE agents SET name = name")
    assert sql.execute("SELECT updated_at > '2021-01-01' FROM agents").fetchone() == (True,)
