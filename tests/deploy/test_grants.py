"""deploy/grants.sql and deploy/redis.acl: with these rights and no others every sweeper runs."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from psycopg import Connection

from actors import SWEEPERS
from app.cli.checks.redis import acl_rules
from app.demo.ports import reserved_port
from app.demo.servers import Redis
from tests.support.processes import QUICK, ROOT, SCHEDULER, WORKER, Process, environment, finished
from tests.support.rights.acl import ACL, PASSWORD, USER, GrantedRedis
from tests.support.rights.grants import as_role, grant
from tests.support.rows import FIXED, column, insert_agent, insert_job, insert_secret, insert_wrap
from tests.support.waiting import eventually

GRANTS = ROOT / "deploy" / "grants.sql"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
#: Whatever is off by default.
ALL_ON = {
    "SB_SWEEP_SESSIONS_INTERVAL": "1s",
    "SB_SWEEP_GITOPS_POLL_INTERVAL": "1s",
    "SB_SWEEP_GITOPS_TIMEOUT_INTERVAL": "1s",
    "SB_WORKER_GITOPS_ENABLED": "true",
    "SB_ENV": "dev",
    "SB_KMS_BACKEND": "local",
    "SB_WRAP_MASTER_KEY": base64.b64encode(bytes(32)).decode(),
}
RAN = "SELECT DISTINCT name FROM secrets_bridge_worker.sweep_run WHERE outcome = 'success' ORDER BY 1"
FAILED = "SELECT name, sqlstate FROM secrets_bridge_worker.sweep_run WHERE outcome = 'failure'"


def test_with_these_rights_alone_every_sweeper_runs(  # noqa: PLR0913, PLR0917 - fixtures
    owner_database: str,
    redis: redis_py.Redis,
    redis_server: GrantedRedis,
    role: str,
    sql: Connection[Any],
    tmp_path: Path,
) -> None:
    del redis  # emptied
    done = grant(owner_database, role)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    insert_wrap(sql, FIXED)
    insert_secret(sql, "ref", FIXED)
    insert_agent(sql, "agent", last_seen_at=FIXED)
    insert_job(sql, claim_expires_at=FIXED)
    env = environment(
        as_role(owner_database, role),
        redis_server.url(),
        **QUICK,
        **ALL_ON,
    )
    checked = finished(("sb-worker", "check"), env)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    expected = sorted(sweeper.name for sweeper in SWEEPERS)
    with Process(WORKER, env, tmp_path / "w.log") as worker, Process(SCHEDULER, env, tmp_path / "s.log") as scheduler:
        worker.ready()
        eventually(lambda: column(sql, RAN) == expected)
        assert (scheduler.end(), worker.end()) == (0, 0)
    assert sql.execute(FAILED).fetchall() == []
    assert not [record for process in (worker, scheduler) for record in process.records if record["level"] == "ERROR"]


def test_a_role_must_be_named_and_a_table_that_is_not_there_is_passed_over(
    owner_database: str, role: str, sql: Connection[Any]
) -> None:
    done = grant(owner_database, None)
    assert done.returncode != 0
    assert "the role is missing: psql --set worker=NAME" in done.stderr
    sql.execute("DROP TABLE sessions CASCADE")
    assert grant(owner_database, role).returncode == 0


def test_an_odd_name_is_quoted(owner_database: str, sql: Connection[Any]) -> None:
    sql.execute('CREATE ROLE "Odd; name"')
    try:
        done = grant(owner_database, "Odd; name")
        assert (done.returncode, done.stderr) == (0, "")
        assert column(sql, "SELECT has_table_privilege('Odd; name', 'secret_wraps', 'DELETE')") == [True]
    finally:
        sql.execute('DROP OWNED BY "Odd; name"')
        sql.execute('DROP ROLE "Odd; name"')


def test_the_redis_user_has_the_rules_that_check_prints() -> None:
    rules, rights = acl_rules("secrets-bridge", "dramatiq"), ACL.read_text(encoding="utf-8")
    assert set(rules.split()) <= set(rights.split())
    assert rights.count("\n") == 1


def test_nobody_can_log_in_as_the_redis_user_as_it_stands(tmp_path: Path) -> None:
    words = {"", "PASSWORD", USER, *ACL.read_text(encoding="utf-8").replace(">", " ").split()}
    with reserved_port() as port, Redis(tmp_path, port=port, options=["--aclfile", str(ACL)]) as server:
        with redis_py.Redis.from_url(server.url()) as owner:
            for word in words:
                with pytest.raises(redis_py.AuthenticationError):
                    owner.execute_command("AUTH", USER, word)
            owner.execute_command("ACL", "SETUSER", USER, f">{PASSWORD}")
        with redis_py.Redis.from_url(server.url(), username=USER, password=PASSWORD) as user:
            assert user.ping()


def test_no_file_of_a_deployment_lets_somebody_in_by_a_word_that_is_published() -> None:
    """A password is a variable that whoever deploys sets, in URLs too."""
    files = [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    assert len(files) > 20
    published = re.compile(r"(?i)password\w*[:=] *[^\s$]|://[^/\s:@]*:(?!\$)[^/\s@]+@|^user .* >|\bnopass\b|\btrust$")
    for path in files:
        text = re.sub(r"\$\{[^}]*\}", "$", path.read_text(encoding="utf-8"))
        assert not [line for line in text.splitlines() if published.search(line.strip())], path


def test_the_docs_name_the_same_privileges() -> None:
    text = OPERATIONS[OPERATIONS.index("## Privileges") : OPERATIONS.index("## Logins")]
    for table in re.findall(r"'[A-Z, ]+',\s+'(\w+)'", GRANTS.read_text(encoding="utf-8")):
        assert f"`{table}`" in text
