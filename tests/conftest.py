"""Real servers for every test that needs one, started once a session and thrown away after it."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis as redis_py
import structlog
from psycopg import Connection
from psycopg_pool import ConnectionPool

from app.demo.binaries import redis_programs
from app.demo.servers import Postgres, Redis
from app.storage import migrations
from tests.support.ports import reserved_port
from tests.support.replica import Replica
from tests.support.waiting import HUNG

CONTROL_PLANE = Path(__file__).parents[1] / "app" / "demo" / "control_plane.sql"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SB_", "DATABASE_", "REDIS_", "PG", "VAULT_", "AWS_", "OTEL_")) or name == "LOG_LEVEL":
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _no_logging_for_others() -> Iterator[None]:
    """Take back the logging that a command has set up in this process."""
    yield
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if type(handler) is not logging.StreamHandler]
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
        yield server


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """Return the URL of a fresh database with both schemas."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE control_plane STRATEGY file_copy".encode())
        yield postgres.url(name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def sql(database: str) -> Iterator[Connection[Any]]:
    """Return a connection to it, each statement committed."""
    with psycopg.connect(database, autocommit=True) as connection:
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
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """Return a Redis."""
    with reserved_port() as port, Redis(tmp_path_factory.mktemp("redis"), port=port) as server:
        yield server


@pytest.fixture(scope="session", params=sorted(redis_programs()))
def any_redis_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """Return each kind of Redis that is here: the scripts must mean the same to all of them."""
    program = redis_programs()[request.param]
    with reserved_port() as port, Redis(tmp_path_factory.mktemp("redis"), port=port, program=program) as server:
        yield server


@pytest.fixture
def redis(redis_server: Redis) -> Iterator[redis_py.Redis]:
    """Return a client of an empty Redis."""
    with redis_py.Redis.from_url(redis_server.url()) as client:
        client.flushall()
        yield client


@pytest.fixture
def replica(database: str, redis: redis_py.Redis) -> Iterator[Replica]:
    """Return what a worker process has: a runner and locks, without Dramatiq around them."""
    pool = ConnectionPool[Connection[Any]](
        database, kwargs={"autocommit": True}, min_size=0, max_size=4, timeout=HUNG, open=True
    )
    with pool:
        yield Replica(pool, redis, lease=timedelta(minutes=1))
