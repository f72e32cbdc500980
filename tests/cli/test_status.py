"""`sb-worker status`: what is wrong is found by this one command, and it says what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import psycopg
import pytest
import redis as redis_py
from click.testing import CliRunner, Result
from psycopg import Connection

from actors import SWEEPERS
from app.cli.main import main
from app.core.values import parse_duration
from tests.overview.signs_of_life import sign_of_life
from tests.support.rights.acl import GrantedRedis
from tests.support.rights.grants import as_role
from tests.support.rows import column, insert_wrap

LOCK = "secrets-bridge:lock:worker:sweeper:"
CANARY = "hunter2"


class Deployment(NamedTuple):
    """A deployment that is well, until a test breaks it."""

    sql: Connection[Any]
    redis: redis_py.Redis
    role: str

    def status(self, words: str = "") -> Result:
        result = CliRunner().invoke(main, ["status", *words.split()])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    def found(self) -> tuple[int, dict[str, Any]]:
        result = self.status("-o json")
        return result.exit_code, json.loads(result.stdout)

    def problems(self) -> list[tuple[str, str, str]]:
        """Return the problems of an overview that is degraded: subject, text, remedy."""
        code, overview = self.found()
        assert (code, overview["verdict"]) == (3, "degraded"), overview["problems"]
        return [(one["subject"], one["text"], one["remedy"]) for one in overview["problems"] if not one["note"]]


@pytest.fixture
def deployment(  # noqa: PLR0913, PLR0917 - fixtures
    database: str,
    sql: Connection[Any],
    redis: redis_py.Redis,
    redis_server: GrantedRedis,
    role: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Deployment:
    """Return one with a replica that lives, all of whose sweepers have just run; the command has a role of its own."""
    monkeypatch.setenv("DATABASE_URL", as_role(database, role))
    monkeypatch.setenv("REDIS_URL", redis_server.url())
    sql.execute(f"GRANT USAGE ON SCHEMA public, secrets_bridge_worker TO {role}".encode())
    for schema in ("public", "secrets_bridge_worker"):
        grant = f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}"
        sql.execute(grant.encode())
    for sweeper in SWEEPERS:
        if sweeper.settings.read().enabled:
            newest_run(sql, sweeper.name, 0)
    replica(sql)
    return Deployment(sql, redis, role)


def replica(sql: Connection[Any], *, but: str = "", cadences: dict[str, float] | None = None) -> None:
    """Give signs of life of the processes of a replica, but for one kind."""
    settings = {sweeper.name: sweeper.settings.read() for sweeper in SWEEPERS}
    own = {name: one.tick.total_seconds() for name, one in settings.items() if one.enabled} | (cadences or {})
    off = {name: one.switch for name, one in settings.items() if not one.enabled}
    for kind in ("scheduler", "worker", "notifier"):
        if kind != but:
            sign_of_life(sql, kind, cadences=own, off=off, ticked=1 if kind == "scheduler" else None)


def newest_run(sql: Connection[Any], name: str, ago: float) -> None:
    """Have the newest run of a sweeper be one that succeeded so many seconds ago."""
    sql.execute(
        """
        WITH state AS (
            INSERT INTO secrets_bridge_worker.sweep_state (name, last_slot, previous_slot, token)
            VALUES (%(name)s, now() - make_interval(secs => %(ago)s), 'epoch', 1)
                ON CONFLICT (name) DO UPDATE SET last_slot = excluded.last_slot
        )
        INSERT INTO secrets_bridge_worker.sweep_run (name, slot, worker, started_at, finished_at, outcome)
        SELECT %(name)s, at, 'host:1', at, at + interval '5 ms', 'success'
          FROM (SELECT now() - make_interval(secs => %(ago)s)) AS run (at)
        """,
        {"name": name, "ago": ago},
    )


def overdue(sql: Connection[Any], name: str = "wraps-expired") -> None:
    """Have a sweeper be overdue, by its newest slot."""
    sql.execute(
        "UPDATE secrets_bridge_worker.sweep_state SET last_slot = now() - interval '1 h' WHERE name = %s", [name]
    )


def failed(sql: Connection[Any], name: str, error: str, sqlstate: str | None = None) -> None:
    """Have the last two attempts of a sweeper have failed."""
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET failures = 2 WHERE name = %s", [name])
    for ago in (2, 1):
        sql.execute(
            "INSERT INTO secrets_bridge_worker.sweep_run"
            " (name, slot, worker, started_at, finished_at, outcome, error_class, sqlstate)"
            " VALUES (%s, now(), 'host:1', now() + make_interval(secs => 1 - %s), now(), 'failure', %s, %s)",
            [name, ago, error, sqlstate],
        )


def test_a_deployment_that_is_well_is_fine(deployment: Deployment) -> None:
    code, overview = deployment.found()
    assert overview["problems"] == []
    assert (code, overview["verdict"]) == (0, "fine")
    states = {sweeper["name"]: (sweeper["state"], sweeper["reason"]) for sweeper in overview["sweepers"]}
    assert states["wraps-expired"] == ("on", "")
    assert states["sessions-expired"] == ("off", "SB_SWEEP_SESSIONS_INTERVAL")
    assert [server["problem"] for server in overview["servers"]] == ["", ""]


def test_redis_down(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://:{CANARY}@127.0.0.1:1")
    assert deployment.problems() == [
        (
            "Redis",
            "the connection is refused",
            "start Redis, or put REDIS_URL right; `sb-worker check` says more",
        )
    ]


def test_postgres_down_is_told_and_the_verdict_is_not_known(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgres://u:{CANARY}@127.0.0.1:1/d")
    code, overview = deployment.found()
    assert (code, overview["verdict"]) == (1, "unknown")
    (problem,) = overview["problems"]
    assert problem["subject"] == "PostgreSQL"
    assert "the connection is refused" in problem["text"]
    assert "start PostgreSQL" in problem["remedy"]
    assert [(one["name"], one["problem"]) for one in overview["servers"]] == [
        ("postgres", "unreachable"),
        ("redis", ""),
    ]
    screen = deployment.status()
    assert screen.output.startswith("cannot tell: PostgreSQL: ")
    assert CANARY not in screen.output


def test_a_server_that_takes_no_writes(deployment: Deployment) -> None:
    deployment.sql.execute(f"ALTER ROLE {deployment.role} SET default_transaction_read_only = on".encode())
    assert deployment.problems()[0] == (
        "PostgreSQL",
        "takes no writes: the server, database or role is read-only",
        "let DATABASE_URL lead to the primary, or promote this one",
    )


@contextmanager
def locked(database: str, table: str) -> Iterator[int]:
    """Hold a table in a transaction that is idle; yield the session's pid."""
    with psycopg.connect(database) as session:
        session.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        yield session.info.backend_pid


@pytest.mark.parametrize("table", ["secret_wraps", "secrets_bridge_worker.sweep_state"])
def test_a_table_that_somebody_holds_is_named_with_the_session_that_does(
    table: str, deployment: Deployment, database: str
) -> None:
    failed(deployment.sql, "wraps-expired", "LockNotAvailable", "55P03")
    with locked(database, table) as pid:
        code, overview = deployment.found()
    problems = {one["subject"]: one for one in overview["problems"]}
    assert code == (3 if table == "secret_wraps" else 1)
    held = problems[table.rpartition(".")[2]] if table == "secret_wraps" else problems["sweep_state"]
    if table != "secret_wraps":
        (held,) = (one for one in overview["problems"] if "is held by" in one["text"])
    assert f"is held by a session of another role (pid {pid}" in held["text"]
    assert held["remedy"] == f"if it is not to go on: SELECT pg_terminate_backend({pid})"
    if table == "secret_wraps":
        assert "fails (LockNotAvailable 55P03), 2 in a row" in problems["wraps-expired"]["text"]
        assert problems["wraps-expired"]["remedy"] == "secret_wraps is held: see below by whom"


def test_a_table_that_somebody_holds_is_named_where_no_failure_could_be_stored(
    deployment: Deployment, database: str
) -> None:
    overdue(deployment.sql)
    with locked(database, "secret_wraps") as pid:
        problems = deployment.problems()
    assert [(subject, remedy) for subject, _, remedy in problems] == [
        ("wraps-expired", "see below by whom"),
        ("secret_wraps", f"if it is not to go on: SELECT pg_terminate_backend({pid})"),
    ]


def test_a_privilege_that_was_revoked(deployment: Deployment) -> None:
    failed(deployment.sql, "wraps-expired", "InsufficientPrivilege", "42501")
    ((subject, text, remedy),) = deployment.problems()
    assert (subject, remedy) == ("wraps-expired", "`sb-worker check` prints the GRANT that is missing")
    assert "InsufficientPrivilege 42501" in text


def test_a_privilege_on_our_own_table_costs_no_more_than_its_part(deployment: Deployment) -> None:
    deployment.sql.execute(f"REVOKE SELECT ON secrets_bridge_worker.process FROM {deployment.role}".encode())
    assert deployment.problems() == [
        (
            "processes",
            "cannot be read: InsufficientPrivilege 42501",
            "`sb-worker check` prints the GRANT that is missing",
        )
    ]


def test_a_scheduler_that_is_dead_is_told_before_anything_is_overdue(deployment: Deployment) -> None:
    deployment.sql.execute("DELETE FROM secrets_bridge_worker.process")
    replica(deployment.sql, but="scheduler")
    sign_of_life(deployment.sql, "scheduler", seen=50, ticked=55)
    ((subject, text, remedy),) = deployment.problems()
    assert subject == "scheduler"
    told = re.fullmatch(r"none is alive, for (\w+) now; the last tick was sent (\w+) ago.*", text)
    assert told is not None, text
    dead, ticked = map(parse_duration, told.groups())
    assert timedelta(seconds=50) <= dead < ticked
    assert "`periodiq app.actors`" in remedy
    assert " 1m         -  " in deployment.status().output  # it counts down to no tick that nobody sends


def test_what_follows_from_a_dead_scheduler_is_told_after_it_and_in_one_line(deployment: Deployment) -> None:
    deployment.sql.execute("DELETE FROM secrets_bridge_worker.process")
    replica(deployment.sql, but="scheduler")
    for name in ("wraps-expired", "agents-stale"):
        overdue(deployment.sql, name)
    problems = deployment.problems()
    assert [subject for subject, _, _ in problems] == ["scheduler", "wraps-expired, agents-stale"]
    assert problems[1][2] == "follows from what stands above; it ends by itself"


def test_a_lock_of_a_stranger(deployment: Deployment) -> None:
    overdue(deployment.sql)
    deployment.redis.set(f"{LOCK}wraps-expired", "f" * 32, px=600_000)
    ((subject, text, remedy),) = deployment.problems()
    assert subject == "wraps-expired"
    assert text.startswith("its lock is held by somebody who is no run of ours, and runs out in 9m")
    assert remedy == "unless a Go worker runs it: `sb-worker unlock wraps-expired`"


def test_a_lock_of_a_moment_is_no_strangers(deployment: Deployment) -> None:
    deployment.redis.set(f"{LOCK}wraps-expired", "f" * 32, px=600_000)  # of a run that is about to begin
    code, overview = deployment.found()
    assert (code, overview["problems"]) == (0, [])


def test_cadences_that_differ(deployment: Deployment) -> None:
    deployment.sql.execute("DELETE FROM secrets_bridge_worker.process WHERE kind = 'scheduler'")
    replica_cadences = {"wraps-expired": 30.0}
    sign_of_life(deployment.sql, "scheduler", cadences=replica_cadences, ticked=1, host="other")
    ((subject, text, remedy),) = deployment.problems()
    assert subject == "wraps-expired"
    assert text == "processes disagree how often: 1m in notifier host:1, worker host:1; 30s in scheduler other:1"
    assert "the same SB_SWEEP_* variables" in remedy


def test_a_clock_that_is_off(deployment: Deployment) -> None:
    sign_of_life(deployment.sql, "worker", ahead=-600, host="late")
    ((subject, text, remedy),) = deployment.problems()
    assert subject == "clock of late"
    assert text.startswith("is 10m behind PostgreSQL's (worker)")
    assert "NTP" in remedy


def test_a_sink_that_is_switched_off(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SB_NOTIFICATION_SLACK_URL", f"https://hooks.slack.com/services/{CANARY}")
    deployment.sql.execute(
        "INSERT INTO secrets_bridge_worker.notification_target (name, off_fingerprint, off_reason, off_at)"
        " VALUES ('slack', 'f', 'auth', now())"
    )
    problems = deployment.problems()
    assert problems[0][:2] == ("sink slack", "is switched off (auth)")
    assert "`sb-worker notify enable slack`" in problems[0][2]


def test_a_backlog(deployment: Deployment) -> None:
    for _ in range(3):
        (expired,) = column(deployment.sql, "SELECT now() - interval '1 h'")
        insert_wrap(deployment.sql, expired)
    ((subject, text, remedy),) = deployment.problems()
    assert subject == "wraps-expired"
    assert text.startswith("3 rows are due, the oldest for 1h")
    assert "`sb-worker why wraps-expired`" in remedy


@pytest.mark.parametrize(("ago", "forgotten"), [("5 min", False), ("2 h", True)])
def test_a_pause_is_noted_and_one_that_is_forgotten_a_problem(
    ago: str, forgotten: bool, deployment: Deployment
) -> None:
    overdue(deployment.sql)
    deployment.sql.execute(
        "INSERT INTO secrets_bridge_worker.sweeper_pause (name, began_at, until, paused_by, reason)"
        " VALUES ('wraps-expired', now() - %s::interval, now() + interval '1 d', 'ann', 'a migration')",
        [ago],
    )
    code, overview = deployment.found()
    (problem,) = overview["problems"]
    assert (code, problem["note"]) == ((3, False) if forgotten else (0, True))
    assert problem["text"].startswith("paused for ")
    assert "(ann: a migration)" in problem["text"]
    assert problem["remedy"] == "`sb-worker resume wraps-expired`"
    (view,) = (one for one in overview["sweepers"] if one["name"] == "wraps-expired")
    assert (view["state"], view["overdue_since"]) == ("paused", None)


def test_a_brake(deployment: Deployment) -> None:
    deployment.sql.execute(
        "UPDATE secrets_bridge_worker.sweep_state SET braked_for = 'too_many_rows', braked_at = now()"
        " WHERE name = 'wraps-expired'"
    )
    ((subject, text, remedy),) = deployment.problems()
    assert (subject, "too_many_rows" in text) == ("wraps-expired", True)
    assert "`sb-worker sweep wraps-expired --approve`" in remedy


def test_a_schema_that_is_not_there_is_told_with_what_makes_it(deployment: Deployment) -> None:
    deployment.sql.execute("ALTER SCHEMA secrets_bridge_worker RENAME TO gone")
    code, overview = deployment.found()
    assert (code, overview["verdict"]) == (1, "unknown")
    assert {one["remedy"] for one in overview["problems"]} == {"bring our schema up to date: `sb-worker migrate`"}


def test_a_pipe_gets_the_table_without_colours_and_the_old_flag_means_json(deployment: Deployment) -> None:
    screen = deployment.status()
    assert screen.output.startswith("fine")
    assert "\x1b" not in screen.output
    assert max(map(len, screen.output.splitlines())) <= 80
    assert json.loads(deployment.status("--json").stdout)["verdict"] == "fine"
    assert deployment.status("--watch").exit_code == 2


def test_nothing_of_a_url_or_a_row_is_shown(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, status_of: Callable[[Deployment], str]
) -> None:
    monkeypatch.setenv("SB_NOTIFICATION_SLACK_URL", f"https://hooks.slack.com/services/{CANARY}")
    assert CANARY not in status_of(deployment)


@pytest.fixture(params=["table", "wide", "json"])
def status_of(request: pytest.FixtureRequest) -> Callable[[Deployment], str]:
    return lambda deployment: deployment.status(f"-o {request.param}").output
