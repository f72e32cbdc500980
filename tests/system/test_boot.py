"""What a process says, and with which status it ends, when it must not start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis as redis_py
from psycopg import Connection

from app.demo.servers import Postgres, Redis
from app.storage import migrations
from tests.support.argocd import ON, insert_endpoint
from tests.support.processes import SCHEDULER, environment, finished
from tests.support.rights.grants import as_role

CANARY = "hunter2"
GOOD = {"DATABASE_URL": f"postgres://u:{CANARY}@127.0.0.1:1/d", "REDIS_URL": f"redis://:{CANARY}@127.0.0.1:1/0"}
DURATION = "not a duration; accepted: a Go duration such as 500ms, 30s, 1m30s or 24h"
COMMANDS = {
    "worker": ("dramatiq", "app.actors"),
    "scheduler": SCHEDULER,
    "check": ("sb-worker", "check"),
}

CASES: list[tuple[dict[str, str], str]] = [
    ({"DATABASE_URL": ""}, "DATABASE_URL: required, but not set"),
    ({"REDIS_URL": ""}, "REDIS_URL: required, but not set"),
    (
        {"DATABASE_URL": f"mysql://u:{CANARY}@h/d"},
        "DATABASE_URL: not a PostgreSQL URL; accepted: postgres://user:password@host:port/database or key=value pairs",
    ),
    (
        {"REDIS_URL": f"http://:{CANARY}@h"},
        "REDIS_URL: not a Redis URL; accepted: redis://user:password@host:port/db, rediss://... or unix:///path?db=0",
    ),
    ({"SB_SWEEP_WRAPS_INTERVAL": "60"}, f"SB_SWEEP_WRAPS_INTERVAL: {DURATION}"),
    ({"SB_SWEEP_WRAPS_INTERVAL": "0s"}, "SB_SWEEP_WRAPS_INTERVAL: must be more than 0"),
    ({"SB_WORKER_JOBS_RECOVERY_INTERVAL": "0"}, "SB_WORKER_JOBS_RECOVERY_INTERVAL: must be more than 0"),
    ({"SB_SWEEP_AGENTS_INTERVAL": "-5s"}, "SB_SWEEP_AGENTS_INTERVAL: must be more than 0"),
    ({"SB_SWEEP_SECRETS_STALE_AFTER": "-24h"}, "SB_SWEEP_SECRETS_STALE_AFTER: must be more than 0"),
    ({"SB_SWEEP_AGENTS_STALE_AFTER": "0"}, "SB_SWEEP_AGENTS_STALE_AFTER: must be more than 0"),
    ({"SB_SWEEP_WRAPS_RETENTION": "-1s"}, "SB_SWEEP_WRAPS_RETENTION: must not be negative"),
    ({"SB_WORKER_SHUTDOWN_GRACE": "1d"}, f"SB_WORKER_SHUTDOWN_GRACE: {DURATION}"),
    ({"SB_WORKER_LOCK_LEASE": "100ms"}, "SB_WORKER_LOCK_LEASE: must be at least 1s"),
    (
        {"SB_SWEEP_WRAPS_INTERVAL": "30s", "SB_WORKER_WRAPS_EXPIRED_INTERVAL": "40s"},
        (
            "SB_SWEEP_WRAPS_INTERVAL: set together with SB_WORKER_WRAPS_EXPIRED_INTERVAL, to different values; "
            "set one of them"
        ),
    ),
    ({"SB_ENV": "staging"}, "SB_ENV: not an environment; accepted: dev, production"),
    (
        {"SB_WORKER_LOCAL_ADDR": "8091"},
        "SB_WORKER_LOCAL_ADDR: not an address; accepted: host:port such as 127.0.0.1:8091 or 0.0.0.0:8091",
    ),
    (
        {"SB_WORKER_METRICS_DIR": "/nowhere/at/all"},
        "SB_WORKER_METRICS_DIR: not a writable directory; accepted: an existing directory, best in memory (/dev/shm)",
    ),
    (
        {"SB_DISCOVER_TARGETS_JSON": f'[{{"x": "{CANARY}"'},
        "SB_DISCOVER_TARGETS_JSON: not JSON; accepted: a list of objects with provider and agent_id or cluster",
    ),
    (
        {"SB_DISCOVER_TARGETS_JSON": f'[{{"provider": "{CANARY}", "cluster": "c"}}]'},
        "SB_DISCOVER_TARGETS_JSON: target 1: provider must be one of aws-sm, vault, gcp-sm, azure-kv, kubernetes",
    ),
    (
        {"DATABASE_URL": "", "DATABASE_URL_FILE": f"/nowhere/{CANARY}"},
        "DATABASE_URL_FILE: names a file that cannot be read; accepted: the path of a readable UTF-8 text file",
    ),
]


GITOPS = {"SB_WORKER_GITOPS_ENABLED": "true"}
DEV = {**GITOPS, "SB_ENV": "dev"}
VAULT = {**GITOPS, "SB_KMS_BACKEND": "vault-transit", "SB_KMS_VAULT_ADDR": "https://v", "SB_KMS_VAULT_KEY": "k"}
AWS = {**GITOPS, "SB_KMS_BACKEND": "aws-kms", "SB_KMS_AWS_REGION": "eu-central-1", "SB_KMS_AWS_KEY_ID": "alias/k"}
_EITHER = "set either it or SB_KMS_VAULT_KUBERNETES_ROLE, which vault-transit logs in with"
_LOGIN = "has a user or a password in its URL, which would be shown; set it without"
_URL = "not a URL; accepted: https://host or https://host:port, and http:// with SB_ENV=dev"

CASES += [
    (GITOPS, "SB_KMS_BACKEND: local is for SB_ENV=dev only; accepted here: vault-transit, aws-kms"),
    (DEV, "SB_WRAP_MASTER_KEY: required by SB_KMS_BACKEND=local, but not set"),
    (
        {**DEV, "SB_WRAP_MASTER_KEY": CANARY},
        "SB_WRAP_MASTER_KEY: not a key; accepted: standard base64, padded, of 32 bytes",
    ),
    (
        {**GITOPS, "SB_KMS_BACKEND": CANARY},
        "SB_KMS_BACKEND: not a key service; accepted: local, vault-transit, aws-kms",
    ),
    ({**VAULT, "SB_KMS_VAULT_ADDR": ""}, "SB_KMS_VAULT_ADDR: required by SB_KMS_BACKEND=vault-transit, but not set"),
    ({**VAULT, "SB_KMS_VAULT_KEY": ""}, "SB_KMS_VAULT_KEY: required by SB_KMS_BACKEND=vault-transit, but not set"),
    (VAULT, f"SB_KMS_VAULT_TOKEN: {_EITHER}"),
    (
        {**VAULT, "SB_KMS_VAULT_TOKEN": CANARY, "SB_KMS_VAULT_KUBERNETES_ROLE": "r"},
        f"SB_KMS_VAULT_TOKEN: {_EITHER}",
    ),
    (
        {**VAULT, "SB_KMS_VAULT_TOKEN": f"{CANARY} x"},
        "SB_KMS_VAULT_TOKEN: not a token; accepted: printable ASCII without spaces",
    ),
    ({**VAULT, "SB_KMS_VAULT_ADDR": "ftp://v"}, f"SB_KMS_VAULT_ADDR: {_URL}"),
    ({**VAULT, "SB_KMS_VAULT_ADDR": f"https://u:{CANARY}@v"}, f"SB_KMS_VAULT_ADDR: {_LOGIN}"),
    ({"SB_KMS_AWS_ENDPOINT": f"https://u:{CANARY}@v"}, f"SB_KMS_AWS_ENDPOINT: {_LOGIN}"),
    ({"SB_NOTIFICATION_PAGERDUTY_URL": f"https://u:{CANARY}@v"}, f"SB_NOTIFICATION_PAGERDUTY_URL: {_LOGIN}"),
    ({"SB_NOTIFICATION_SLACK_API_URL": f"https://u:{CANARY}@v"}, f"SB_NOTIFICATION_SLACK_API_URL: {_LOGIN}"),
    (
        {**VAULT, "SB_KMS_VAULT_ADDR": "http://v"},
        (
            "SB_KMS_VAULT_ADDR: plain http:// is for SB_ENV=dev and for this host's loopback such as "
            "http://127.0.0.1:8200 only; accepted: https://"
        ),
    ),
    (
        {**VAULT, "VAULT_CACERT": "/nowhere"},
        "VAULT_CACERT: names a file that cannot be read; accepted: the path of a PEM file",
    ),
    ({**VAULT, "SB_KMS_VAULT_CACERT": "Makefile"}, "SB_KMS_VAULT_CACERT: holds no certificate; accepted: PEM"),
    (
        {**VAULT, "VAULT_SKIP_VERIFY": "true"},
        "VAULT_SKIP_VERIFY: not supported; name Vault's authority in SB_KMS_VAULT_CACERT",
    ),
    ({**AWS, "SB_KMS_AWS_REGION": ""}, "SB_KMS_AWS_REGION: required by SB_KMS_BACKEND=aws-kms, but not set"),
    ({**AWS, "SB_KMS_AWS_KEY_ID": ""}, "SB_KMS_AWS_KEY_ID: required by SB_KMS_BACKEND=aws-kms, but not set"),
    ({**AWS, "SB_KMS_AWS_REGION": "here"}, "SB_KMS_AWS_REGION: not a region; accepted: a name such as eu-central-1"),
    ({**AWS, "SB_KMS_AWS_ENDPOINT": "kms.local"}, f"SB_KMS_AWS_ENDPOINT: {_URL}"),
    ({"SB_WORKER_GITOPS_ENABLED": "yes"}, "SB_WORKER_GITOPS_ENABLED: not a boolean; accepted: true, false, 1, 0, t, f"),
    ({"SB_WORKER_GITOPS_HTTP_TIMEOUT": "-1s"}, "SB_WORKER_GITOPS_HTTP_TIMEOUT: must not be negative"),
    ({"SB_WORKER_GITOPS_FRESHNESS": "no"}, "SB_WORKER_GITOPS_FRESHNESS: not a switch; accepted: on, off, true, false"),
    (
        {"SB_SWEEP_GITOPS_POLL_INTERVAL": "15s", "SB_WORKER_GITOPS_POLL_INTERVAL": "20s"},
        (
            "SB_SWEEP_GITOPS_POLL_INTERVAL: set together with SB_WORKER_GITOPS_POLL_INTERVAL, to different values; "
            "set one of them"
        ),
    ),
]


@pytest.mark.parametrize(("settings", "line"), CASES, ids=[line[:70] for _, line in CASES])
def test_a_wrong_setting_is_one_line_and_status_1(settings: dict[str, str], line: str) -> None:
    done = finished(COMMANDS["check"], environment("", "") | GOOD | settings)
    assert done.returncode == 1
    assert f"config error: {line}" in done.stderr.splitlines()
    assert CANARY not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["worker", "scheduler", "check"])
def test_all_problems_are_told_at_once_by_every_command_and_only_once(command: str) -> None:
    wrong = {
        "SB_SWEEP_WRAPS_INTERVAL": "0s",
        "SB_SWEEP_WRAPS_RETENTION": CANARY,
        "DATABASE_URL": "",
        "SB_KMS_BACKEND": "aws-kms",
    }
    done = finished(COMMANDS[command], environment("", "") | GOOD | wrong | GITOPS)
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if line.startswith("config error")]
    assert sorted(told) == [
        "config error: DATABASE_URL: required, but not set",
        "config error: SB_KMS_AWS_KEY_ID: required by SB_KMS_BACKEND=aws-kms, but not set",
        "config error: SB_KMS_AWS_REGION: required by SB_KMS_BACKEND=aws-kms, but not set",
        "config error: SB_SWEEP_WRAPS_INTERVAL: must be more than 0",
        f"config error: SB_SWEEP_WRAPS_RETENTION: {DURATION}",
    ]
    assert "Traceback" not in done.stderr
    assert CANARY not in done.stderr
    assert CANARY not in done.stderr


def test_both_names_of_a_setting_with_one_value_are_fine_and_unknown_names_are_told(
    database: str, redis_server: Redis, redis: redis_py.Redis
) -> None:
    env = environment(
        database,
        redis_server.url(),
        SB_SWEEP_WRAPS_INTERVAL="60s",
        SB_WORKER_WRAPS_EXPIRED_INTERVAL="1m",
        SB_SWEEP_WRAP_INTERVAL="5s",
    )
    done = finished(COMMANDS["check"], env)
    assert done.returncode == 0, done.stdout
    assert "SB_SWEEP_WRAP_INTERVAL (did you mean SB_SWEEP_WRAPS_INTERVAL?) is not known, and not read" in done.stdout


def test_values_that_are_passed_over_are_told(database: str, redis_server: Redis) -> None:
    env = environment(
        database, redis_server.url(), LOG_LEVEL=CANARY, DATABASE_MAX_CONNS="0", SB_SWEEP_WRAPS_INTERVAL="500ms"
    )
    done = finished(COMMANDS["check"], env)
    assert done.returncode == 0, done.stdout
    for name in ("LOG_LEVEL", "DATABASE_MAX_CONNS", "SB_SWEEP_WRAPS_INTERVAL"):
        assert f"{name}: " in done.stdout
    assert CANARY not in done.stdout + done.stderr


def test_check_tries_the_tokens_of_the_argocds(
    database: str, redis_server: Redis, sql: Connection[Any], tmp_path: Path
) -> None:
    env = environment(database, redis_server.url(), **ON)
    insert_endpoint(sql, "one", "https://127.0.0.1:1")
    insert_endpoint(sql, "off", "https://127.0.0.1:1", enabled=False, token_kms_key_id="other")
    done = finished(COMMANDS["check"], env)
    assert done.returncode == 0, done.stdout
    assert "opens the tokens of all 1 enabled ArgoCD endpoints" in done.stdout
    insert_endpoint(sql, "two", "https://127.0.0.1:1", token_kms_key_id="local:canary")
    done = finished(COMMANDS["check"], env)
    assert done.returncode == 1
    assert "1 of 2 ArgoCD tokens do not open: wrapped by another key" in done.stdout
    assert "canary" not in done.stdout + done.stderr


def test_without_gitops_its_settings_and_tables_do_not_matter(
    database: str, redis_server: Redis, sql: Connection[Any]
) -> None:
    sql.execute("DROP TABLE gitops_observations, gitops_app_mappings, argocd_endpoints")
    env = environment(database, redis_server.url(), SB_KMS_BACKEND="nonsense", SB_WRAP_MASTER_KEY=CANARY)
    done = finished(COMMANDS["check"], env)
    assert done.returncode == 0, done.stdout
    shown = finished(("sb-worker", "config"), env)
    assert shown.returncode == 0
    assert CANARY not in shown.stdout


def test_secrets_are_read_from_files(database: str, redis_server: Redis, tmp_path: Path) -> None:
    (tmp_path / "dsn").write_text(database + "\n")
    env = environment("", redis_server.url(), DATABASE_URL_FILE=str(tmp_path / "dsn"))
    assert finished(COMMANDS["check"], env).returncode == 0
    shown = finished(("sb-worker", "config"), env)
    assert shown.returncode == 0
    assert database not in shown.stdout
    assert '"name": "DATABASE_URL", "value": "set", "source": "DATABASE_URL_FILE"' in shown.stdout


@pytest.mark.parametrize("command", ["worker", "check"])
@pytest.mark.parametrize("away", ["postgres", "redis"])
def test_a_server_that_is_away_is_named_with_the_reason(
    database: str, redis_server: Redis, command: str, away: str
) -> None:
    there = {"DATABASE_URL": database, "REDIS_URL": redis_server.url()}
    lost = {"postgres": "DATABASE_URL", "redis": "REDIS_URL"}[away]
    done = finished(COMMANDS[command], environment("", "") | there | {lost: GOOD[lost]})
    text = {
        "postgres": "DATABASE_URL: PostgreSQL cannot be reached: the connection is refused",
        "redis": "REDIS_URL: Redis cannot be used: the connection is refused",
    }[away]
    assert done.returncode == 1
    assert text in done.stdout + done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [("no_such_role@", "the role does not exist"), ("postgres@", "the database does not exist")],
)
def test_a_wrong_role_or_database_is_told_in_our_words(
    postgres: Postgres, redis_server: Redis, wrong: str, reason: str
) -> None:
    url = f"postgres://{wrong}127.0.0.1:{postgres.port}/no_such_database"
    done = finished(COMMANDS["check"], environment(url, redis_server.url()))
    assert done.returncode == 1
    assert reason in done.stdout
    assert "no_such" not in done.stdout + done.stderr


@pytest.fixture
def weak(postgres: Postgres, owner_database: str) -> str:
    """Return the URL of the database for a role that may only connect."""
    with psycopg.connect(owner_database, autocommit=True) as connection:
        connection.execute("DROP SCHEMA secrets_bridge_worker CASCADE")
        row = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'weak'").fetchone()
        if row is None:
            connection.execute("CREATE ROLE weak LOGIN")
    return as_role(owner_database, "weak")


def test_a_role_without_rights_gets_the_sql_to_run(weak: str, owner_database: str, redis_server: Redis) -> None:
    env = environment(weak, redis_server.url())
    done = finished(COMMANDS["worker"], env)
    assert done.returncode == 1
    assert "this role may not create it; run the SQL below" in done.stderr
    script = done.stderr[done.stderr.index("BEGIN;") : done.stderr.index("COMMIT;") + len("COMMIT;")]

    checked = finished(COMMANDS["check"], env)
    assert checked.returncode == 1
    assert "GRANT SELECT, UPDATE, DELETE ON secret_wraps TO " in checked.stdout

    with psycopg.connect(owner_database, autocommit=True) as connection:
        connection.execute(script.replace("secrets_bridge_worker_role", "weak").encode())
        connection.execute("GRANT SELECT, UPDATE, DELETE ON secret_wraps TO weak")
        connection.execute("GRANT SELECT, UPDATE ON secrets, agents TO weak")
        connection.execute("GRANT SELECT, UPDATE, INSERT ON sync_jobs TO weak")
        connection.execute("GRANT SELECT, UPDATE ON reveal_sessions, access_requests, provider_connections TO weak")
        connection.execute("GRANT SELECT ON schema_migrations TO weak")
    again = finished(COMMANDS["check"], env)
    assert again.returncode == 0, again.stdout


def test_missing_and_half_migrated_tables_are_found(database: str, sql: Connection[Any], redis_server: Redis) -> None:
    sql.execute("UPDATE schema_migrations SET dirty = true")
    sql.execute("ALTER TABLE agents RENAME TO elsewhere")
    done = finished(COMMANDS["check"], environment(database, redis_server.url()))
    assert done.returncode == 1
    assert "a migration of the api was left half done (dirty)" in done.stdout
    assert "table missing: agents; the sweeper rests until it is there" in done.stdout


@pytest.mark.parametrize(
    "count", ["100000000000000000000", "9" * 5000, "65", "-1", "1.5", "", "\u0663x"], ids=lambda count: count[:21]
)
def test_a_number_of_processes_that_no_machine_has_is_wrong_usage(count: str) -> None:
    done = finished(("sb-worker", "run", "-c", f"worker={count}"), environment("", "") | GOOD)
    assert done.returncode == 2
    assert "numbers up to 64" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("content", [b"worker: a\0b\n", b"worker: \xff\n", b"worker: " + b"x" * 200_000])
def test_a_procfile_that_cannot_be_run_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_bytes(content)
    done = finished(("sb-worker", "run", "--procfile", str(tmp_path / "Procfile")), environment("", "") | GOOD)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("sb-worker", "nonsense"),
        ("sb-worker", "check", "--nonsense"),
        ("sb-worker", "run", "-c", "x=1"),
        ("sb-worker", "run", "-c", "x=1", "-c", "worker=1"),
    ],
)
def test_wrong_usage_is_status_2(words: tuple[str, ...]) -> None:
    done = finished(words, environment("", "") | GOOD)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_migrate_is_idempotent_and_prints_its_sql_without_a_server(owner_database: str, redis_server: Redis) -> None:
    env = environment(owner_database, redis_server.url())
    assert "nothing to do" in finished(("sb-worker", "migrate"), env).stdout
    with psycopg.connect(owner_database, autocommit=True) as connection:
        connection.execute("DROP SCHEMA secrets_bridge_worker CASCADE")
    assert f"version 0 -> {migrations.VERSION}" in finished(("sb-worker", "migrate"), env).stdout
    printed = finished(("sb-worker", "migrate", "--sql"), environment("", ""))
    assert printed.returncode == 0
    assert "CREATE TABLE secrets_bridge_worker.sweep_run" in printed.stdout
