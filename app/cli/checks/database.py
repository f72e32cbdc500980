"""The part of `sb-worker check` that looks at PostgreSQL, and at what its role may do there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
from psycopg.rows import dict_row, scalar_row

from app.cli.checks.finding import Finding
from app.core.errors import BootError, SchemaError, describe
from app.storage import migrations, postgres
from app.storage.postgres import only_row
from app.sweeping.scans.tables import INDEXED, LARGE, PAGES, is_there
from app.sweeping.unserved import KNOWN_SCHEMA, Pair, unserved

if TYPE_CHECKING:
    from psycopg import Connection

    from app.storage.settings import DatabaseSettings
    from app.sweeping.sweeper import Sweeper, SweeperSettings


_VERSION = "SELECT current_setting('server_version_num')::int"
_PRESENT: LiteralString = f"SELECT {is_there('%(relation)s')}"
_PRIVILEGE = "SELECT has_table_privilege(to_regclass(%s), %s)"
_COLUMN_PRIVILEGE = "SELECT has_any_column_privilege(to_regclass(%s), %s)"
_ROLE = "SELECT quote_ident(current_user)"
_BY_COLUMN = ("SELECT", "INSERT", "UPDATE")
_TAKES_WRITES = "SELECT NOT pg_is_in_recovery() AND NOT current_setting('transaction_read_only')::bool"
_MIGRATIONS = "SELECT dirty FROM schema_migrations"
# From the catalog, which knows those of every version: one that is not granted is a process that fails later.
_OWN_TABLES = """
SELECT relname FROM pg_class
 WHERE relnamespace = to_regnamespace('secrets_bridge_worker') AND relkind IN ('r', 'p') ORDER BY relname
"""
_OFF = "SELECT name, off_reason FROM secrets_bridge_worker.notification_target WHERE off_fingerprint IS NOT NULL"
_OWN_PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE")
#: What is read only.
_ONLY_READ = {"schema_version": ("SELECT",)}


def database_findings(
    settings: DatabaseSettings, sweepers: Sequence[Sweeper[Any]], pairs: Sequence[Pair] = ()
) -> Iterator[Finding]:
    """Yield findings about PostgreSQL, the api's tables that these sweepers need, and our own schema.

    `pairs` are all sweepers with their settings, those that are off too: what of the api nobody serves is told as well.
    """
    try:
        connection = postgres.connect(settings)
    except BootError as error:
        yield Finding("postgres", False, str(error))
        return
    with connection:
        try:
            yield from _connected(connection, sweepers, pairs)
        except psycopg.Error as error:
            yield Finding("postgres", False, f"a look at the catalog failed: {' '.join(filter(None, describe(error)))}")


def _connected(
    connection: Connection[Any], sweepers: Sequence[Sweeper[Any]], pairs: Sequence[Pair]
) -> Iterator[Finding]:
    version = _query(connection, _VERSION)
    if version < postgres.OLDEST_SERVER:
        yield Finding("postgres", False, f"server version {version // 10000}; needed is 14 or newer")
    else:
        yield Finding("postgres", True, f"answers, server version {version // 10000}")
    if not _query(connection, _TAKES_WRITES):
        yield Finding("postgres", False, "takes no writes: a standby, or a server or role that is read-only")
    yield from _api(connection)
    homes = {sweeper.name: sweeper.rests_without(settings) for sweeper, settings in pairs}
    for sweeper in sweepers:
        yield _sweeper(connection, sweeper, homes.get(sweeper.name, sweeper.table))
    yield from _advice(connection, pairs)
    own_schema = _own_schema(connection)
    yield own_schema
    if own_schema.fine and migrations.installed(connection) >= migrations.VERSION:
        for name, reason in connection.execute(_OFF).fetchall():
            text = f"switched off ({reason}) until its configuration changes; `sb-worker notify test {name}` tries it"
            yield Finding(f"sink {name}", False, text, warning=True)


def _api(connection: Connection[Any]) -> Iterator[Finding]:
    if not _present(connection, "schema_migrations"):
        yield Finding("api schema", False, "no schema_migrations: the api has not migrated this database yet")
        return
    try:
        dirty = _query(connection, _MIGRATIONS)
    except psycopg.errors.InsufficientPrivilege:  # not needed for any work
        role = _query(connection, _ROLE)
        text = "cannot be seen, half done migrations neither: GRANT SELECT ON schema_migrations TO"
        yield Finding("api schema", False, f"{text} {role};", warning=True)
        return
    text = "a migration of the api was left half done (dirty)" if dirty else "migrated"
    yield Finding("api schema", not dirty, text)


def _sweeper(connection: Connection[Any], sweeper: Sweeper[Any], home: str) -> Finding:
    """Return what a sweeper lacks; it rests without `home`, a table or `table.column`, as without what it needs."""
    missing = [relation for relation in {home: (), **sweeper.needs} if not _present(connection, relation)]
    if missing:
        text = f"table missing: {', '.join(missing)}; the sweeper rests until it is there"
        return Finding(sweeper.name, False, text, warning=True)
    used = {relation: privileges for relation, privileges in sweeper.uses.items() if _present(connection, relation)}
    tables = {relation.partition(".")[0]: privileges for relation, privileges in {**sweeper.needs, **used}.items()}
    return _privileges(connection, sweeper.name, tables, "tables and privileges are there")


def _advice(connection: Connection[Any], pairs: Sequence[Pair]) -> Iterator[Finding]:
    """Yield warnings: features of the api that nobody serves, and settings that its tables make worth a thought."""
    found = unserved(connection, pairs)
    if found.version:
        text = f"version {found.version} is newer than {KNOWN_SCHEMA}: what has come since is not served"
        yield Finding("api schema", False, text, warning=True)
    for name, switch in found.off.items():
        yield Finding(name, False, f"off, although its table is there; {switch} switches it on", warning=True)
    for sweeper, settings in pairs:
        yield from _index(connection, sweeper, settings)
        for relation, text in settings.hints.items():
            if settings.enabled and _present(connection, relation):
                yield Finding(sweeper.name, False, text, warning=True)


def _index(connection: Connection[Any], sweeper: Sweeper[Any], settings: SweeperSettings) -> Iterator[Finding]:
    """Yield a warning where a sweep reads a large table for want of an index."""
    index = sweeper.index
    if index is None or not settings.enabled or not _present(connection, index.table):
        return
    with connection.cursor(row_factory=dict_row) as cursor:
        row = only_row(cursor.execute(INDEXED, index._asdict()))
        pages = int(only_row(cursor.execute(PAGES, {"table": index.table}))["pages"])
    if pages >= LARGE and not row["indexed"]:
        text = (
            f"reads all {pages:,} pages of {index.table}, run by run; an index would spare it that: {index.statement}"
        )
        yield Finding(sweeper.name, False, text, warning=True)


def _privileges(
    connection: Connection[Any], subject: str, needs: Mapping[str, Sequence[str]], fine: str, schema: str = ""
) -> Finding:
    lacking: dict[str, list[str]] = {}
    by_column: list[str] = []
    for table, privileges in needs.items():
        for privilege in privileges:
            if _query(connection, _PRIVILEGE, schema + table, privilege):
                continue
            if privilege in _BY_COLUMN and _query(connection, _COLUMN_PRIVILEGE, schema + table, privilege):
                by_column.append(f"{privilege} on {table}")
            else:
                lacking.setdefault(schema + table, []).append(privilege)
    if lacking:
        role = _query(connection, _ROLE)
        grants = " ".join(
            f"GRANT {', '.join(privileges)} ON {table} TO {role};" for table, privileges in lacking.items()
        )
        return Finding(subject, False, f"this role lacks privileges: {grants}")
    if by_column:
        text = f"granted by columns, which are not checked one by one: {', '.join(by_column)}"
        return Finding(subject, True, text)
    return Finding(subject, True, fine)


def _own_schema(connection: Connection[Any]) -> Finding:
    subject = "own schema"
    try:
        version = migrations.installed(connection)
    except psycopg.errors.InsufficientPrivilege:
        return Finding(subject, False, _no_use(connection))
    if version >= migrations.VERSION:
        with connection.cursor(row_factory=scalar_row) as cursor:
            tables: list[str] = cursor.execute(_OWN_TABLES).fetchall()
        needs = {table: _ONLY_READ.get(table, _OWN_PRIVILEGES) for table in tables}
        return _privileges(connection, subject, needs, f"version {version}", "secrets_bridge_worker.")
    if not _query(connection, _TAKES_WRITES):
        return Finding(subject, False, "cannot be created where no writes are taken")
    try:
        with connection.transaction(force_rollback=True):  # no query predicts this for sure
            migrations.migrate(connection)
    except (SchemaError, BootError) as error:
        return Finding(subject, False, str(error))
    return Finding(
        subject, True, f"version {version}; a worker or `sb-worker migrate` will bring it to {migrations.VERSION}"
    )


def _no_use(connection: Connection[Any]) -> str:
    """Return what a role lacks that cannot read the version of our schema: either of two rights, or both."""
    role, schema = _query(connection, _ROLE), "secrets_bridge_worker"
    grants = (
        f"GRANT USAGE ON SCHEMA {schema} TO {role};"
        f" GRANT {', '.join(_OWN_PRIVILEGES)} ON ALL TABLES IN SCHEMA {schema} TO {role};"
    )
    return f"this role may not use the schema {schema}: {grants}"


def _present(connection: Connection[Any], relation: str) -> bool:
    """Return whether a table is there, or a `table.column`."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        return bool(cursor.execute(_PRESENT, {"relation": relation}).fetchone())


def _query(connection: Connection[Any], query: Any, *values: str) -> Any:
    with connection.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(query, values).fetchone()
