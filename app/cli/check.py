"""`sb-worker check`: finds what would keep a worker from its work before it is started."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import redis
from psycopg.rows import scalar_row

from app.core.errors import BootError, SchemaError, describe
from app.core.role import SINK_QUEUE, SWEEP_QUEUE
from app.storage import migrations, postgres

if TYPE_CHECKING:
    from datetime import timedelta

    from psycopg import Connection

    from app.storage.settings import DatabaseSettings, RedisSettings
    from app.sweeping.sweeper import Sweeper


#: From so many messages on, a queue seems to have no worker.
LONG_QUEUE = 1_000


class Finding(NamedTuple):
    """The result of one check: fine, or what is wrong and what to do. A warning does not fail the command."""

    subject: str
    fine: bool
    text: str
    warning: bool = False


_VERSION = "SELECT current_setting('server_version_num')::int"
_PRESENT = "SELECT to_regclass(%s) IS NOT NULL"
_PRIVILEGE = "SELECT has_table_privilege(to_regclass(%s), %s)"
_MIGRATIONS = "SELECT dirty FROM schema_migrations"
_OWN_TABLES = (
    "sweep_state",
    "sweep_run",
    "notification_event",
    "notification_delivery",
    "notification_target",
    "notification_hold",
    "gitops_rest",
)
_OFF = "SELECT name, off_reason FROM secrets_bridge_worker.notification_target WHERE off_fingerprint IS NOT NULL"
_OWN_PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE")


def redis_findings(settings: RedisSettings, answer_within: timedelta) -> Iterator[Finding]:
    """Yield findings about Redis, which is to answer within `answer_within`."""
    from app.storage.redis import connect  # noqa: PLC0415 - only this command needs both

    client = connect(settings, answer_within=answer_within)
    try:
        client.ping()
        yield Finding("redis", True, "answers")
    except redis.AuthenticationError:
        yield Finding("redis", False, "REDIS_URL: the user or password is wrong")
        return
    except redis.RedisError as error:
        yield Finding("redis", False, f"REDIS_URL: Redis cannot be reached or refuses us ({describe(error).error})")
        return
    for queue in (SWEEP_QUEUE, SINK_QUEUE):
        if (length := client.llen(f"{settings.queue_namespace}:{queue}")) > LONG_QUEUE:
            text = f"{length} messages wait; run a worker that serves it (`dramatiq app.actors --queues {queue}`)"
            yield Finding(f"queue {queue}", False, text, warning=True)
    try:
        policy = client.config_get("maxmemory-policy").get("maxmemory-policy", "noeviction")
    except redis.RedisError:
        return  # hosted servers hide their configuration
    if policy != "noeviction":
        text = "maxmemory-policy may drop lock keys and queued ticks; set it to noeviction"
        yield Finding("redis eviction", False, text, warning=True)


def database_findings(settings: DatabaseSettings, sweepers: Sequence[Sweeper[Any]]) -> Iterator[Finding]:
    """Yield findings about PostgreSQL, the api's tables that these sweepers need, and our own schema."""
    try:
        connection = postgres.connect(settings)
    except BootError as error:
        yield Finding("postgres", False, str(error))
        return
    with connection:
        try:
            yield from _connected(connection, sweepers)
        except psycopg.Error as error:
            yield Finding("postgres", False, f"a look at the catalog failed: {' '.join(filter(None, describe(error)))}")


def _connected(connection: Connection[Any], sweepers: Sequence[Sweeper[Any]]) -> Iterator[Finding]:
    version = _query(connection, _VERSION)
    if version < postgres.OLDEST_SERVER:
        yield Finding("postgres", False, f"server version {version // 10000}; needed is 14 or newer")
    else:
        yield Finding("postgres", True, f"answers, server version {version // 10000}")
    yield from _api(connection)
    for sweeper in sweepers:
        yield _sweeper(connection, sweeper)
    own_schema = _own_schema(connection)
    yield own_schema
    if own_schema.fine and migrations.installed(connection) >= migrations.VERSION:
        for name, reason in connection.execute(_OFF).fetchall():
            text = f"switched off ({reason}) until its configuration changes; `sb-worker notify test {name}` tries it"
            yield Finding(f"sink {name}", False, text, warning=True)


def _api(connection: Connection[Any]) -> Iterator[Finding]:
    if not _query(connection, _PRESENT, "schema_migrations"):
        yield Finding("api schema", False, "no schema_migrations: the api has not migrated this database yet")
        return
    try:
        dirty = _query(connection, _MIGRATIONS)
    except psycopg.errors.InsufficientPrivilege:
        return  # not needed for any work
    text = "a migration of the api was left half done (dirty)" if dirty else "migrated"
    yield Finding("api schema", not dirty, text)


def _sweeper(connection: Connection[Any], sweeper: Sweeper[Any]) -> Finding:
    missing = [table for table in sweeper.needs if not _query(connection, _PRESENT, table)]
    if missing:
        return Finding(sweeper.name, False, f"table missing: {', '.join(missing)}; the sweeper rests until it is there")
    return _privileges(connection, sweeper.name, sweeper.needs, "tables and privileges are there")


def _privileges(
    connection: Connection[Any], subject: str, needs: Mapping[str, Sequence[str]], fine: str, schema: str = ""
) -> Finding:
    lacking = [
        f"{privilege} on {table}"
        for table, privileges in needs.items()
        for privilege in privileges
        if not _query(connection, _PRIVILEGE, schema + table, privilege)
    ]
    if lacking:
        return Finding(subject, False, f"this role lacks {', '.join(lacking)}; GRANT them")
    return Finding(subject, True, fine)


def _own_schema(connection: Connection[Any]) -> Finding:
    subject = "own schema"
    try:
        version = migrations.installed(connection)
    except psycopg.errors.InsufficientPrivilege:
        return Finding(subject, False, "this role may not use the schema secrets_bridge_worker; GRANT USAGE on it")
    if version >= migrations.VERSION:
        needs: dict[str, Sequence[str]] = dict.fromkeys(_OWN_TABLES, _OWN_PRIVILEGES)
        return _privileges(connection, subject, needs, f"version {version}", "secrets_bridge_worker.")
    try:
        with connection.transaction(force_rollback=True):  # no query predicts this for sure
            migrations.migrate(connection)
    except SchemaError as error:
        return Finding(subject, False, str(error))
    return Finding(
        subject, True, f"version {version}; a worker or `sb-worker migrate` will bring it to {migrations.VERSION}"
    )


def _query(connection: Connection[Any], query: Any, *values: str) -> Any:
    with connection.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(query, values).fetchone()
