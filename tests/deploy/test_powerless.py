"""What the suite runs as: the role of deploy/grants.sql and the user of deploy/redis.acl, and nothing more."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis as redis_py
from psycopg import Connection
from redis.exceptions import NoPermissionError

from app.demo.servers import Postgres
from tests.support.rights.acl import USER, GrantedRedis
from tests.support.rights.grants import GRANTS, ROLE
from tests.support.rows import column, rows

#: What a role may do as a member of nothing but PUBLIC, in a database of ours.
PUBLIC = {("CONNECT", "DATABASE"), ("TEMPORARY", "DATABASE")}
ATTRIBUTES = """
SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls, rolcanlogin FROM pg_roles WHERE rolname = %s
"""
MEMBERSHIPS = "SELECT count(*) FROM pg_auth_members WHERE member = %(role)s::regrole OR roleid = %(role)s::regrole"
OWNED = """
SELECT (SELECT count(*) FROM pg_shdepend WHERE refobjid = %(role)s::regrole AND deptype = 'o')
     + (SELECT count(*) FROM pg_database WHERE datdba = %(role)s::regrole)
     + (SELECT count(*) FROM pg_class WHERE relowner = %(role)s::regrole)
"""
#: Every relation of every schema that is not the server's own, and what the role may do there by whatever way.
MAY = """
SELECT n.nspname || '.' || c.relname AS name, p.privilege
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS p (privilege)
 WHERE n.nspname !~ '^(pg_|information_schema)' AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
   AND has_table_privilege(%(role)s, c.oid, p.privilege)
"""
SEQUENCES = """
SELECT count(*) FROM pg_class
 WHERE CASE relkind WHEN 'S' THEN has_sequence_privilege(%(role)s, oid, 'USAGE, SELECT, UPDATE') ELSE false END
"""
SCHEMAS = """
SELECT nspname AS name, p.privilege FROM pg_namespace CROSS JOIN unnest(ARRAY['USAGE', 'CREATE']) AS p (privilege)
 WHERE nspname !~ '^(pg_|information_schema)' AND has_schema_privilege(%(role)s, oid, p.privilege)
"""
DATABASES = """
SELECT p.privilege FROM unnest(ARRAY['CREATE', 'CONNECT', 'TEMPORARY']) AS p (privilege)
 WHERE has_database_privilege(%(role)s, current_database(), p.privilege)
"""
OUR_TABLES = """
SELECT 'secrets_bridge_worker.' || relname FROM pg_class
 WHERE relnamespace = 'secrets_bridge_worker'::regnamespace AND relkind = 'r'
"""


@pytest.fixture
def plain(database: str) -> Iterator[Connection[Any]]:
    """Return a connection as everything under test has one."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def pairs(sql: Connection[Any], query: str) -> set[tuple[str, str]]:
    with sql.cursor() as cursor:
        return {(name, privilege) for name, privilege in cursor.execute(query.encode(), {"role": ROLE})}


def written(text: str) -> set[tuple[str, str]]:
    """Return what deploy/grants.sql says of the api's tables."""
    found = re.findall(r"\('([A-Z, ]+)',\s+'(\w+)'\)", text)
    return {(f"public.{table}", one) for privileges, table in found for one in privileges.split(", ")}


def test_it_is_nobody_in_particular_and_owns_nothing(plain: Connection[Any], sql: Connection[Any]) -> None:
    assert plain.execute("SELECT current_user, session_user").fetchone() == (ROLE, ROLE)
    (row,) = sql.execute(ATTRIBUTES, [ROLE]).fetchall()
    assert row == (False, False, False, False, False, True)
    for query in (MEMBERSHIPS, OWNED, SEQUENCES):
        assert sql.execute(query.encode(), {"role": ROLE}).fetchone() == (0,), query


def test_its_privileges_are_those_that_the_file_grants_and_no_others(sql: Connection[Any]) -> None:
    text = GRANTS.read_text(encoding="utf-8")
    ours = {(table, one) for table in column(sql, OUR_TABLES) for one in ("SELECT", "INSERT", "UPDATE", "DELETE")}
    assert len(written(text)) > 20
    assert pairs(sql, MAY) == written(text) | ours
    assert pairs(sql, SCHEMAS) == {("public", "USAGE"), ("secrets_bridge_worker", "USAGE")}
    with sql.cursor() as cursor:
        assert {(one, "DATABASE") for (one,) in cursor.execute(DATABASES.encode(), {"role": ROLE})} == PUBLIC


#: Of these `users` is one of the api's tables that no sweeper has to do with.
REFUSED = (
    "CREATE TABLE mine ()",
    "CREATE SCHEMA mine",
    "CREATE DATABASE mine",
    "CREATE ROLE mine",
    "ALTER TABLE agents ADD COLUMN mine text",
    "CREATE INDEX ON agents (status)",
    "DROP TABLE secrets_bridge_worker.heartbeat",
    "TRUNCATE secret_wraps",
    "DELETE FROM agents",
    "INSERT INTO secret_wraps DEFAULT VALUES",
    "SELECT * FROM users",
    "COPY agents TO PROGRAM 'true'",
    "SELECT pg_read_file('PG_VERSION')",
    "ALTER SYSTEM SET work_mem = '1MB'",
)


def test_it_is_refused_what_it_was_not_granted(plain: Connection[Any], sql: Connection[Any]) -> None:
    sql.execute("CREATE TABLE IF NOT EXISTS users ()")
    for statement in REFUSED:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            plain.execute(statement.encode())


def test_servers_of_the_suite_know_it_by_this_name(postgres: Postgres, sql: Connection[Any], database: str) -> None:
    assert f"//{ROLE}@127.0.0.1:{postgres.port}/" in database
    assert rows(sql, "SELECT session_user AS name") == [{"name": "postgres"}]


def test_the_redis_user_is_logged_in_by_its_name(any_redis_server: GrantedRedis) -> None:
    with redis_py.Redis.from_url(any_redis_server.owner_url()) as owner:
        with redis_py.Redis.from_url(any_redis_server.url()) as client:
            assert client.ping()
            assert USER in {one["user"] for one in owner.client_list()}
        nobody = any_redis_server.url().replace(f"//{USER}:", f"//{USER}:not-")
        with redis_py.Redis.from_url(nobody) as client, pytest.raises(redis_py.AuthenticationError):
            client.ping()


COMMANDS = (
    *("FLUSHALL", "FLUSHDB", "KEYS *", "SCAN 0", "CONFIG GET *", "CONFIG SET maxmemory 1", "INFO", "MONITOR", "SAVE"),
    *("EVAL return 0", "SCRIPT FLUSH", "SCRIPT KILL", "CLIENT LIST", "CLIENT KILL x", "ACL WHOAMI", "ACL LIST"),
    *("SHUTDOWN", "REPLICAOF NO ONE", "MODULE LIST", "CLUSTER FORGET x", "LATENCY RESET", "SLOWLOG GET"),
    *("PUBLISH a b", "SUBSCRIBE a", "RENAME dramatiq:a dramatiq:b", "DUMP dramatiq:a", "TYPE dramatiq:a"),
    *("GET elsewhere", "SET elsewhere 1", "DEL elsewhere", "GET secrets-bridge:session:1", "GET dramatique"),
)


def test_the_redis_user_is_refused_what_the_file_does_not_name(any_redis_server: GrantedRedis) -> None:
    with redis_py.Redis.from_url(any_redis_server.url()) as client:
        for command in COMMANDS:
            words = [*command.split(" ", 1), "0"] if command.startswith("EVAL") else command.split()
            with pytest.raises(NoPermissionError):
                client.execute_command(*words)


def test_a_script_has_no_more_rights_than_its_user(any_redis_server: GrantedRedis) -> None:
    with redis_py.Redis.from_url(any_redis_server.url()) as client:
        harmless = client.script_load("return redis.call('GET', KEYS[1])")
        assert client.evalsha(harmless, 1, "dramatiq:nothing") is None
        for text, key in (
            ("return redis.call('GET', KEYS[1])", "elsewhere"),
            ("return redis.call('FLUSHALL')", "dramatiq:nothing"),
            ("return redis.call('GET', 'elsewhere')", "dramatiq:nothing"),
        ):
            number = client.script_load(text)
            with pytest.raises(redis_py.ResponseError, match=r"(?i)permission|user executing the script can't"):
                client.evalsha(number, 1, key)
