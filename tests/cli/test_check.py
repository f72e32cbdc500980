"""`sb-worker check`: it uses Redis as a worker does, and says what a role of PostgreSQL may not do."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis as redis_py
from psycopg import Connection

from actors import SWEEPERS
from actors.agents_stale import agents_stale
from actors.cross_team_fill_window_expired import cross_team_fill_window_expired
from actors.discover_scheduler import discover_scheduler
from actors.discover_stuck import discover_stuck
from actors.reveal_sessions_expired import reveal_sessions_expired
from actors.wraps_expired import wraps_expired
from app.cli.checks.database import database_findings
from app.cli.checks.finding import Finding
from app.cli.checks.redis import COMMANDS, acl_rules, redis_findings
from app.demo.binaries import redis_programs
from app.storage.postgres_dsn import parse_database_url
from app.storage.redis_dsn import parse_redis_url
from app.storage.settings import DatabaseSettings, RedisSettings
from app.sweeping.sweeper import Sweeper
from tests.storage.test_redis import server
from tests.support.rights.grants import ROLE, as_role
from tests.support.rows import column
from tests.support.waiting import HUNG, eventually

#: What a user may lack without any harm: there are other ways to log in, and a server that is no cluster.
SPARED = ("auth", "select", "client|setname", "cluster|info")


@pytest.fixture(scope="module", params=sorted(redis_programs()))
def admin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis_py.Redis]:
    with (
        server(tmp_path_factory.mktemp("redis"), program=request.param) as running,
        redis_py.Redis(port=running.port) as client,
    ):
        yield client


def found(url: str) -> list[Finding]:
    settings = RedisSettings(url=parse_redis_url(url))
    return list(redis_findings(settings, timedelta(seconds=HUNG)))


def found_by(admin: redis_py.Redis, rules: str) -> list[Finding]:
    acl: Any = admin.acl_setuser
    names = [rule.removeprefix("~") for rule in rules.split() if rule.startswith("~")]
    commands = [rule for rule in rules.split() if not rule.startswith("~")]
    acl("checked", enabled=True, reset=True, passwords=["+pw"], keys=names, commands=commands)
    return found(f"redis://checked:pw@127.0.0.1:{admin.connection_pool.connection_kwargs['port']}")


RULES = acl_rules("secrets-bridge", "dramatiq")


def test_the_rules_that_are_shown_suffice_and_nothing_is_left_behind(admin: redis_py.Redis) -> None:
    admin.flushall()
    assert all(finding.fine for finding in found_by(admin, RULES))
    assert list(admin.scan_iter("*check*")) == []
    assert admin.zcard("dramatiq:__heartbeats__") == 0


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in SPARED])
def test_each_of_the_commands_is_missed(command: str, admin: redis_py.Redis) -> None:
    lacking = found_by(admin, RULES.replace(f" +{command} ", " ").removesuffix(f" +{command}"))
    assert not all(finding.fine for finding in lacking)
    assert command == "ping" or any(RULES in finding.text for finding in lacking)


@pytest.mark.parametrize(
    "key", ["~*secrets-bridge:*worker:sweeper:*", "~secrets-bridge:lock:discover:*", "~dramatiq", "~dramatiq:*"]
)
def test_each_of_the_keys_is_missed(key: str, admin: redis_py.Redis) -> None:
    lacking = [finding for finding in found_by(admin, RULES.replace(f"{key} ", "", 1)) if not finding.fine]
    assert [finding.text for finding in lacking] == [f"the user of REDIS_URL lacks rights; these suffice: {RULES}"]


def test_a_replica_is_told(tmp_path: Path) -> None:
    with server(tmp_path / "r") as running, redis_py.Redis(port=running.port) as client:
        client.replicaof("127.0.0.1", "1")
        texts = [finding.text for finding in found(running.url()) if not finding.fine]
        assert texts == ["a replica, which takes no writes; REDIS_URL must lead to the master"] * 2


def test_a_cluster_of_one_shard_is_fine(tmp_path: Path) -> None:
    with server(tmp_path / "r", "--cluster-enabled", "yes") as running, redis_py.Redis(port=running.port) as client:
        client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
        eventually(lambda: client.cluster("INFO")["cluster_state"] == "ok")
        queues = {finding.subject: finding.fine for finding in found(running.url())}
        assert queues["redis queues"]


def found_of(database: str, role: str) -> dict[str, Finding]:
    url = as_role(database, role)
    findings = database_findings(DatabaseSettings(url=parse_database_url(url)), [agents_stale, wraps_expired])
    return {finding.subject: finding for finding in findings}


def test_an_own_schema_that_cannot_be_made_is_a_finding_and_hides_no_other(
    database: str, role: str, sql: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sql.execute("DELETE FROM secrets_bridge_worker.schema_version WHERE version > 3")
    sql.execute(f"GRANT USAGE ON SCHEMA secrets_bridge_worker TO {role}".encode())
    sql.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA secrets_bridge_worker TO {role}".encode())
    sql.execute(f"ALTER ROLE {role} SET default_transaction_read_only = on".encode())
    assert found_of(database, role)["own schema"].text == "cannot be created where no writes are taken"
    # And one that somebody else has in use.
    monkeypatch.setattr("app.storage.migrations.TRIES", 1)
    with psycopg.connect(database) as other:
        other.execute("LOCK TABLE secrets_bridge_worker.sweep_state")
        findings = found_of(database, "postgres")
    assert "LockNotAvailable" in findings["own schema"].text
    assert findings["agents-stale"].fine


def test_what_a_role_lacks_is_the_grant_that_it_needs(database: str, role: str, sql: Connection[Any]) -> None:
    finding = found_of(database, role)["agents-stale"]
    assert not finding.fine
    grant = finding.text.removeprefix("this role lacks privileges: ")
    sql.execute(grant.encode())
    assert found_of(database, role)["agents-stale"].fine


def test_grants_by_column_are_grants(database: str, role: str, sql: Connection[Any]) -> None:
    sql.execute(f"GRANT SELECT (ctid, status, last_seen_at), UPDATE (status) ON agents TO {role}".encode())
    finding = found_of(database, role)["agents-stale"]
    assert finding.fine
    assert "granted by columns, which are not checked one by one: SELECT on agents, UPDATE on agents" in finding.text


def test_a_server_or_role_that_takes_no_writes_is_told(database: str, role: str, sql: Connection[Any]) -> None:
    sql.execute(f"ALTER ROLE {role} SET default_transaction_read_only = on".encode())
    assert not found_of(database, role)["postgres"].fine


def unserved(database: str, **environment: str) -> dict[str, str]:
    """Return the warnings about what of the api is not served, by subject."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        pairs = [(sweeper, sweeper.settings.read()) for sweeper in SWEEPERS]
    on = [sweeper for sweeper, settings in pairs if settings.enabled]
    findings = list(database_findings(DatabaseSettings(url=parse_database_url(database)), on, pairs))
    assert all(finding.fine or finding.warning for finding in findings), findings
    return {finding.subject: finding.text for finding in findings if finding.warning}


@pytest.mark.parametrize("change", ["RENAME COLUMN version TO number", "ALTER COLUMN version TYPE text"])
def test_another_tools_table_of_versions_says_nothing_of_the_api(
    database: str, sql: Connection[Any], change: str
) -> None:
    sql.execute(f"ALTER TABLE schema_migrations {change}".encode())
    assert "sessions-expired" in unserved(database)


def test_what_of_the_api_is_there_and_not_served_is_told(database: str, sql: Connection[Any]) -> None:
    found = unserved(database)
    off = "off, although its table is there; {} switches it on"
    assert found.pop("sessions-expired") == off.format("SB_SWEEP_SESSIONS_INTERVAL")
    assert found.pop("gitops-poller") == off.format("SB_WORKER_GITOPS_ENABLED")
    assert found.pop("gitops-timeout") == off.format("SB_WORKER_GITOPS_ENABLED")
    assert found.pop("wraps-expired").startswith("SB_SWEEP_WRAPS_SESSION_RETENTION=1h ")
    assert found == {}

    sql.execute("UPDATE schema_migrations SET version = 40")
    sql.execute("DROP TABLE sessions")
    found = unserved(database, SB_SWEEP_WRAPS_SESSION_RETENTION="1h")
    assert found["api schema"] == "version 40 is newer than 38: what has come since is not served"
    assert not {"sessions-expired", "wraps-expired"} & found.keys()


def test_an_older_api_is_warned_about_and_needs_no_grant(database: str, role: str, sql: Connection[Any]) -> None:
    sql.execute("DROP TABLE reveal_sessions")
    sql.execute("ALTER TABLE access_requests DROP fill_expires_at")
    sql.execute("ALTER TABLE provider_connections DROP discover_interval_seconds, DROP last_discover_status")
    sql.execute(f"GRANT USAGE ON SCHEMA secrets_bridge_worker TO {role}".encode())
    for what, where in (
        ("SELECT, INSERT, UPDATE, DELETE", "ALL TABLES IN SCHEMA secrets_bridge_worker"),
        ("SELECT, UPDATE, DELETE", "secret_wraps"),
        ("SELECT, UPDATE, INSERT", "secrets, agents, sync_jobs"),
    ):
        sql.execute(f"GRANT {what} ON {where} TO {role}".encode())
    found = unserved(as_role(database, role))
    rests = "table missing: {}; the sweeper rests until it is there"
    assert found["reveal-sessions-expired"] == rests.format("reveal_sessions")
    assert found["cross-team-fill-window-expired"] == rests.format("access_requests.fill_expires_at")
    assert found["discover-stuck"] == rests.format("provider_connections.discover_interval_seconds")
    assert found["discover-scheduler"] == found["discover-stuck"]
    targets = '[{"cluster": "c", "provider": "vault"}]'
    assert "discover-scheduler" not in unserved(as_role(database, role), SB_DISCOVER_TARGETS_JSON=targets)
    assert "wraps-expired" not in found


def test_the_grants_of_the_newest_sweepers(database: str, role: str) -> None:
    url = DatabaseSettings(url=parse_database_url(as_role(database, role)))
    newest: list[Sweeper[Any]] = [
        reveal_sessions_expired,
        cross_team_fill_window_expired,
        discover_stuck,
        discover_scheduler,
    ]
    found = {finding.subject: finding.text for finding in database_findings(url, newest)}
    granted = {name: found[name].partition(": ")[2] for name in (sweeper.name for sweeper in newest)}
    assert granted == {
        "reveal-sessions-expired": f"GRANT SELECT, UPDATE ON reveal_sessions TO {role};"
        f" GRANT SELECT, UPDATE ON secret_wraps TO {role};",
        "cross-team-fill-window-expired": f"GRANT SELECT, UPDATE ON access_requests TO {role};",
        "discover-stuck": f"GRANT SELECT, UPDATE ON provider_connections TO {role};",
        "discover-scheduler": f"GRANT SELECT, INSERT ON sync_jobs TO {role};"
        f" GRANT SELECT ON agents TO {role};"
        f" GRANT SELECT, UPDATE ON provider_connections TO {role};",
    }


def test_rights_on_every_table_of_ours_are_looked_at(database: str, sql: Connection[Any]) -> None:
    tables = column(
        sql, "SELECT relname FROM pg_class WHERE relnamespace = 'secrets_bridge_worker'::regnamespace AND relkind = 'r'"
    )
    assert "heartbeat" in tables
    found: dict[str, str] = {}
    for table in tables:
        sql.execute(f"REVOKE ALL ON secrets_bridge_worker.{table} FROM {ROLE}".encode())
        found[table] = found_of(database, ROLE)["own schema"].text
        sql.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON secrets_bridge_worker.{table} TO {ROLE}".encode())
    assert found.pop("schema_version").startswith("this role may not use the schema secrets_bridge_worker: GRANT USAGE")
    for table, text in found.items():
        grant = f"GRANT SELECT, INSERT, UPDATE, DELETE ON secrets_bridge_worker.{table} TO {ROLE};"
        assert text == f"this role lacks privileges: {grant}"


def test_migrations_that_cannot_be_seen_are_told(database: str, sql: Connection[Any]) -> None:
    assert found_of(database, ROLE)["api schema"].fine
    sql.execute(f"REVOKE SELECT ON schema_migrations FROM {ROLE}".encode())
    finding = found_of(database, ROLE)["api schema"]
    assert (finding.fine, finding.warning) == (False, True)
    sql.execute(finding.text.partition(": ")[2].encode())
    assert found_of(database, ROLE)["api schema"].fine


def test_rights_on_our_schema_are_told_so_that_they_suffice(database: str, role: str, sql: Connection[Any]) -> None:
    for lacking in ("nothing was granted", "a table of it was forgotten"):
        text = found_of(database, role)["own schema"].text
        sql.execute(text.partition(": ")[2].encode())
        assert found_of(database, role)["own schema"].fine, lacking
        sql.execute(f"REVOKE SELECT ON secrets_bridge_worker.schema_version FROM {role}".encode())
