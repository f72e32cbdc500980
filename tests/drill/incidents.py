"""The incidents: how each is made to happen, what `sb-worker status` must say of it, and what mends it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import psycopg

from tests.drill.deployment import Deployment
from tests.support.http_server import Reply
from tests.support.rights.grants import ROLE
from tests.support.waiting import eventually

#: What an operator types, or does where that is no command of ours.
Step = str


@dataclass(frozen=True)
class Incident:
    """Something that goes wrong: `happens` is what it looks like to who does not know, `found` a pattern of the screen.

    `mended` does what mends it and returns that as an operator would type it. `provoked` lasts for its context.
    """

    title: str
    happens: str
    provoked: Callable[[Deployment], AbstractContextManager[None]]
    found: str
    mended: Callable[[Deployment], Step]
    #: The exit status of `sb-worker status` meanwhile: 3 degraded, 1 cannot tell.
    status: int = 3


@contextmanager
def _redis_down(deployment: Deployment) -> Iterator[None]:
    deployment.redis.stop()
    yield


def _start_redis(deployment: Deployment) -> Step:
    deployment.redis.start()
    return "# start Redis"


@contextmanager
def _postgres_down(deployment: Deployment) -> Iterator[None]:
    deployment.postgres.stop()
    yield


def _start_postgres(deployment: Deployment) -> Step:
    deployment.postgres.start()
    return "# start PostgreSQL"


@contextmanager
def _standby(deployment: Deployment) -> Iterator[None]:
    deployment.postgres.stop()
    deployment.postgres.as_standby()
    yield


def _promote(deployment: Deployment) -> Step:
    with deployment.sql() as sql:
        sql.execute("SELECT pg_promote()")
    return 'psql -c "SELECT pg_promote()"    # or let DATABASE_URL lead to the primary'


@contextmanager
def _table_locked(deployment: Deployment) -> Iterator[None]:
    with psycopg.connect(deployment.postgres.url()) as holder:
        holder.execute("LOCK TABLE secret_wraps IN ACCESS EXCLUSIVE MODE")
        yield
        holder.close()


def _terminate(deployment: Deployment) -> Step:
    with deployment.sql() as sql:
        sql.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks"
            " WHERE relation = 'secret_wraps'::regclass AND mode IN ('AccessExclusiveLock', 'RowShareLock')"
            " AND granted AND pid IN (SELECT pid FROM pg_stat_activity WHERE usename = 'postgres')"
        )
    return 'psql -c "SELECT pg_terminate_backend(...)"    # the number that the screen names'


@contextmanager
def _privilege_revoked(deployment: Deployment) -> Iterator[None]:
    with deployment.sql() as sql:
        sql.execute(f"REVOKE UPDATE ON agents FROM {ROLE}".encode())
    yield


def _grant(deployment: Deployment) -> Step:
    checked = deployment.command("sb-worker check")
    assert "GRANT UPDATE ON agents" in checked.stdout, checked.stdout
    with deployment.sql() as sql:
        sql.execute(f"GRANT UPDATE ON agents TO {ROLE}".encode())
    return 'sb-worker check    # prints: GRANT UPDATE ON agents TO secrets_bridge_worker_role;\npsql -c "GRANT ..."'


@contextmanager
def _scheduler_dead(deployment: Deployment) -> Iterator[None]:
    deployment.stop("scheduler", signal.SIGKILL)
    yield


def _start_scheduler(deployment: Deployment) -> Step:
    deployment.start("scheduler")
    return "periodiq app.actors"


@contextmanager
def _strangers_lock(deployment: Deployment) -> Iterator[None]:
    with deployment.client() as client:
        key = "secrets-bridge:lock:worker:sweeper:wraps-expired"
        eventually(lambda: client.set(key, "0123456789abcdef" * 2, nx=True, ex=3600))
    yield


def _unlock(deployment: Deployment) -> Step:
    line = "sb-worker unlock wraps-expired --yes"
    done = deployment.command(line)
    assert done.returncode == 0, done.stdout + done.stderr
    return line


@contextmanager
def _differing_cadences(deployment: Deployment) -> Iterator[None]:
    deployment.start("worker", "second worker", SB_SWEEP_AGENTS_INTERVAL="30s")
    yield


def _stop_second(deployment: Deployment) -> Step:
    deployment.stop("second worker")
    return "# start that worker anew, with the variables that the others have"


@contextmanager
def _clock_off(deployment: Deployment) -> Iterator[None]:
    deployment.start("worker whose clock is ahead", "second worker")
    yield


def _set_clock(deployment: Deployment) -> Step:
    deployment.stop("second worker")
    return "# set that machine's clock by NTP"


@contextmanager
def _credentials_revoked(deployment: Deployment) -> Iterator[None]:
    deployment.receiver.answer = Reply(401)
    with deployment.sql() as sql:  # something to tell of
        sql.execute(
            "INSERT INTO agents (name, secret_hash, status, last_seen_at)"
            " VALUES (gen_random_uuid()::text, '\\x01', 'active', now() - interval '1 h')"
        )
    yield


def _enable(deployment: Deployment) -> Step:
    deployment.receiver.answer = Reply(200)
    lines = ["sb-worker notify enable webhook", "sb-worker dead replay --sink webhook --all"]
    for line in lines:
        done = deployment.command(line)
        assert done.returncode == 0, done.stdout + done.stderr
    return "\n".join(["# put the receiver's credentials right", *lines])


@contextmanager
def _backlog(deployment: Deployment) -> Iterator[None]:
    with psycopg.connect(deployment.postgres.url()) as holder:
        holder.execute(
            "INSERT INTO secret_wraps (encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash,"
            " byte_length, expires_at) SELECT '\\x01', '\\x02', '\\x03', 'local:drill', '\\x04', 1,"
            " now() - interval '2 h' FROM generate_series(1, 300)"
        )
        holder.commit()
        holder.execute("SELECT FROM secret_wraps FOR UPDATE")
        yield
        holder.close()


@contextmanager
def _paused_and_forgotten(deployment: Deployment) -> Iterator[None]:
    paused = deployment.command("sb-worker pause wraps-expired --for 24h --reason 'while the backup runs'")
    assert paused.returncode == 0, paused.stderr
    with deployment.sql() as sql:  # hours ago
        sql.execute("UPDATE secrets_bridge_worker.sweeper_pause SET began_at = began_at - interval '5 h'")
    yield


def _resume(deployment: Deployment) -> Step:
    line = "sb-worker resume wraps-expired"
    done = deployment.command(line)
    assert done.returncode == 0, done.stderr
    return line


INCIDENTS = (
    Incident("Redis is down", "Nothing is swept.", _redis_down, r"Redis", _start_redis),
    Incident("PostgreSQL is down", "Nothing is swept.", _postgres_down, r"PostgreSQL", _start_postgres, status=1),
    Incident(
        "PostgreSQL is a standby",
        "A failover has left `DATABASE_URL` behind: the server answers, and takes no writes.",
        _standby,
        r"PostgreSQL(.|\n)*(standby|read)",
        _promote,
    ),
    Incident(
        "A table is locked",
        "Somebody's migration holds `secret_wraps`, and has forgotten it.",
        _table_locked,
        r"secret_wraps(.|\n)*pid \d+(.|\n)*pg_terminate_backend",
        _terminate,
    ),
    Incident(
        "A privilege was revoked",
        "Agents that are silent stay active.",
        _privilege_revoked,
        r"agents-stale(.|\n)*42501(.|\n)*sb-worker check",
        _grant,
    ),
    Incident(
        "The scheduler is dead",
        "Both probes of every worker are ready, and nothing is swept.",
        _scheduler_dead,
        r"scheduler(.|\n)*none is alive(.|\n)*periodiq app.actors",
        _start_scheduler,
    ),
    Incident(
        "A stranger holds a lock",
        "One sweeper stands still; no error anywhere.",
        _strangers_lock,
        r"wraps-expired(.|\n)*lock is held(.|\n)*unlock wraps-expired",
        _unlock,
    ),
    Incident(
        "Two cadences",
        "A worker was started with another environment than the rest.",
        _differing_cadences,
        r"agents-stale(.|\n)*disagree(.|\n)*30s",
        _stop_second,
    ),
    Incident(
        "A clock is off",
        "The clock of one machine is ten minutes ahead.",
        _clock_off,
        r"clock of .*(.|\n)*ahead of(.|\n)*NTP",
        _set_clock,
    ),
    Incident(
        "A receiver takes us for nobody",
        "The credentials of a sink were revoked: it answers 401.",
        _credentials_revoked,
        r"webhook(.|\n)*switched off(.|\n)*notify enable\s+webhook",
        _enable,
    ),
    Incident(
        "A backlog",
        "The sweeps succeed, and expired wraps are still there: a session holds their rows.",
        _backlog,
        r"wraps-expired(.|\n)*rows are due, the oldest for",
        _terminate,
    ),
    Incident(
        "A pause that was forgotten",
        "Somebody paused a sweeper this morning.",
        _paused_and_forgotten,
        r"wraps-expired(.|\n)*is it\s+forgotten(.|\n)*resume wraps-expired",
        _resume,
    ),
)

#: What status says as long as something is settling down is of no interest.
SETTLING = 0.5


def pause() -> None:
    """Leave the machine to the deployment for a moment."""
    time.sleep(SETTLING)
