"""Plants a canary in every column of the control plane's tables that can hold one; the catalog says which can."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from psycopg import Connection
from psycopg.rows import class_row

from tests.leaks.canaries import Canaries

_COLUMNS = """
SELECT c.table_name AS table, c.column_name AS column, c.udt_name AS type,
       c.is_nullable = 'NO' AND c.column_default IS NULL AS required,
       EXISTS (SELECT FROM pg_constraint AS k
                 JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND k.conkey = ARRAY[a.attnum]
                WHERE k.contype = 'c' AND k.conrelid = format('%I.%I', c.table_schema, c.table_name)::regclass
                  AND a.attname = c.column_name
                  AND pg_get_constraintdef(k.oid) ~ '[^<>]= (ANY|'')') AS closed
  FROM information_schema.columns AS c JOIN information_schema.tables AS t USING (table_schema, table_name)
 WHERE c.table_schema = 'public' AND t.table_type = 'BASE TABLE' AND c.table_name <> 'schema_migrations'
 ORDER BY 1, c.ordinal_position
"""
#: Types that hold texts or bytes of others.
_OPEN = {"text", "varchar", "bpchar", "bytea", "json", "jsonb", "_text", "_varchar", "_bytea", "_jsonb"}
#: What a column of another type gets where it must have something.
_ANYTHING = {
    "uuid": "gen_random_uuid()",
    "timestamptz": "now() - interval '1 hour'",
    "int4": "60",
    "int2": "60",
    "environment_kind": "'prod'",
}
#: What makes a value odd as well: quotes of every kind, letters beyond ASCII, what ends lines and formats.
_ODD = " \"'`\\ü<b>%s{}\n"


class _Column(NamedTuple):
    table: str
    column: str
    type: str
    required: bool
    closed: bool

    @property
    def plantable(self) -> bool:
        return self.type in _OPEN and not self.closed

    @property
    def name(self) -> str:
        return f"row {self.table}.{self.column}"


class Sql(str):
    """An expression for a column, in place of a value."""

    __slots__ = ()


class Planting:
    """Inserts rows full of canaries."""

    def __init__(self, sql: Connection[Any], canaries: Canaries) -> None:
        self._sql = sql
        self._canaries = canaries
        self._rows = 0
        with sql.cursor(row_factory=class_row(_Column)) as cursor:
            self._columns = cursor.execute(_COLUMNS).fetchall()

    @property
    def tables(self) -> list[str]:
        """Every table."""
        return sorted({column.table for column in self._columns})

    def insert(self, table: str, **given: Any) -> str:
        """Insert a row, with canaries in all columns that are not given, and return its id.

        Without a look at foreign keys: what a sweep does not follow may point nowhere.
        """
        self._rows += 1
        values = {column.column: self._value(column, given) for column in self._columns if column.table == table}
        values = {name: value for name, value in values.items() if value is not None}
        places = [str(value) if isinstance(value, Sql) else f"%({name})s" for name, value in values.items()]
        row = {name: value for name, value in values.items() if not isinstance(value, Sql)}
        statement = f"INSERT INTO {table} ({', '.join(values)}) VALUES ({', '.join(places)}) RETURNING id::text"
        with self._sql.transaction():
            self._sql.execute("SET LOCAL session_replication_role = replica")
            found = self._sql.execute(statement.encode(), row).fetchone()
        assert found is not None
        return str(found[0])

    def missing(self) -> Iterator[str]:
        """Yield the columns that could hold a canary and of which no row does."""
        for column in self._columns:
            if column.plantable:
                text = (
                    f"encode(\"{column.column}\", 'escape')" if column.type == "bytea" else f'"{column.column}"::text'
                )
                query = f"SELECT FROM {column.table} WHERE strpos({text}, %s) > 0 LIMIT 1"
                if self._sql.execute(query.encode(), [self._canaries[column.name]]).fetchone() is None:
                    yield column.name

    def _value(self, column: _Column, given: dict[str, Any]) -> Any:
        if column.column in given:
            return given[column.column]
        if column.plantable:
            return self._canary(column)
        return Sql(_ANYTHING[column.type]) if column.required else None

    def _canary(self, column: _Column) -> Any:
        text = f"{self._canaries[column.name]}{_ODD}{self._rows}"
        if column.type.startswith("_"):
            return [text]
        if column.type == "bytea":
            return text.encode()
        return json.dumps({text: [text]}) if column.type.startswith("json") else text
