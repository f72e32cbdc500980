"""Real servers for every test that needs one, started once a session and thrown away after it.

What is under test uses them with the rights of deploy/grants.sql and deploy/redis.acl; `sql` and `redis` are the test's
own, and may do everything.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import dramatiq.brokers.redis
import psycopg
import psycopg_pool.base
import pytest
import redis as redis_py
import structlog
from hypothesis import HealthCheck, settings
from psycopg import Connection
from psycopg_pool import ConnectionPool
from redis import backoff

from app.core.logging import LogLines
from app.demo.binaries import redis_programs
from app.demo.ports import reserved_port
from app.demo.servers import Postgres
from app.storage import migrations
from tests.support.replica import Replica
from tests.support.rights.acl import GrantedRedis
from tests.support.rights.grants import ROLE, as_role, granted
from tests.support.waiting import HUNG

# How long a case takes says how busy the machine is; and nothing is kept in the checkout.
settings.register_profile(
    "suite", deadline=None, database=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

# Threads of pools and clients draw random numbers when they like; from generators of their own, since Hypothesis takes
# any change of the global one, while it draws, for a strategy's doing.
for module, name in (
    (psycopg_pool.base, "random"),
    (backoff, "random"),
    (dramatiq.brokers.redis, "random"),
    (dramatiq.common, "uniform"),
):
    own = random.Random()
    setattr(module, name, own if isinstance(getattr(module, name), ModuleType) else getattr(own, name))

CONTROL_PLANE = Path(__file__).parents[1] / "app" / "demo" / "control_plane.sql"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SB_", "DATABASE_", "REDIS_", "PG", "VAULT_", "AWS_", "OTEL_")) or name == "LOG_LEVEL":
            monkeypatch.delenv(name)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture(autouse=True)
def _no_thread_for_others(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Wait for the threads that a test has begun: in another one they would log, fail, or draw a random number.

    Those that a server's own thread begins, one for each connection, are the server's, which may be there for longer.
    """
    begun: list[threading.Thread] = []
    start = threading.Thread.start

    def kept(thread: threading.Thread) -> None:
        if threading.current_thread() in {threading.main_thread(), *begun}:
            begun.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", kept)
    yield
    for thread in begun:
        thread.join(HUNG)
        assert not thread.is_alive(), f"the test has left the thread {thread.name}"


@pytest.fixture(autouse=True)
def _no_connection_for_others(_no_thread_for_others: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close what a test has left open to Redis: collected later, it may be a warning in a test without a part in it."""
    pools: list[redis_py.ConnectionPool] = []
    make = redis_py.ConnectionPool.__init__

    def kept(pool: redis_py.ConnectionPool, *args: Any, **options: Any) -> None:
        make(pool, *args, **options)
        pools.append(pool)

    monkeypatch.setattr(redis_py.ConnectionPool, "__init__", kept)
    yield
    for pool in pools:
        pool.disconnect()


@pytest.fixture(autouse=True)
def _no_logging_for_others() -> Iterator[None]:
    """Take back the logging that a command has set up in this process."""
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if not isinstance(handler, LogLines)]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(False)
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """Return a PostgreSQL with a template database that has the control plane's schema and ours."""
    with reserved_port() as port, Postgres(tmp_path_factory.mktemp("pg"), port=port) as server:
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE control_plane")
        with psycopg.connect(server.url("control_plane"), autocommit=True) as connection:
            connection.execute(CONTROL_PLANE.read_bytes())
            migrations.migrate(connection)
        granted(server.url("control_plane"))
        yield server


@pytest.fixture
def owner_database(postgres: Postgres) -> Iterator[str]:
    """Return the URL of a fresh database with both schemas for who owns all of it: an administrator, or the api."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE control_plane STRATEGY file_copy".encode())
        yield postgres.url(name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def database(owner_database: str) -> str:
    """Return its URL for the role that has what deploy/grants.sql grants, and nothing else."""
    return as_role(owner_database, ROLE)


@pytest.fixture
def sql(owner_database: str) -> Iterator[Connection[Any]]:
    """Return its owner's connection to it, each statement committed."""
    with psycopg.connect(owner_database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def role(sql: Connection[Any]) -> Iterator[str]:
    """Yield the name of a role that may log in, and nothing else."""
    name = f"powerless_{secrets.token_hex(4)}"
    sql.execute(f"CREATE ROLE {name} LOGIN".encode())
    yield name
    sql.execute(f"DROP OWNED BY {name}".encode())
    sql.execute(f"DROP ROLE {name}".encode())


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrantedRedis]:
    """Return a Redis; its URL is that of the user of deploy/redis.acl."""
    with reserved_port() as port, GrantedRedis(tmp_path_factory.mktemp("redis"), port=port) as server:
        yield server


@pytest.fixture(scope="session", params=sorted(redis_programs()))
def any_redis_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GrantedRedis]:
    """Return each kind of Redis that is here: the scripts must mean the same to all of them."""
    program = redis_programs()[request.param]
    with reserved_port() as port, GrantedRedis(tmp_path_factory.mktemp("redis"), port=port, program=program) as server:
        yield server


@pytest.fixture
def redis(redis_server: GrantedRedis) -> Iterator[redis_py.Redis]:
    """Return a client of an empty Redis that may do everything."""
    with redis_py.Redis.from_url(redis_server.owner_url()) as client:
        client.flushall()
        yield client


@pytest.fixture
def replica(database: str, redis: redis_py.Redis) -> Iterator[Replica]:
    """Return what a worker process has: a runner and locks, without Dramatiq around them."""
    pool = ConnectionPool[Connection[Any]](
        database, kwargs={"autocommit": True}, min_size=0, max_size=4, timeout=HUNG, open=True
    )
    with pool, Replica(pool, redis, lease=timedelta(minutes=1)) as made:
        yield made
