"""Servers with both schemas for one measurement, processes beside them, and a replica within this process."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import redis as redis_py
from psycopg import Connection

from app.demo.servers import Postgres
from app.storage import migrations, postgres
from app.storage.settings import DatabaseSettings
from app.supervisor.parent_death import signal_at_parent_death
from tests.support.processes import QUICK, ROOT, Process, environment
from tests.support.replica import Replica
from tests.support.rights.acl import GrantedRedis
from tests.support.rights.grants import ROLE, granted

#: By this name PostgreSQL knows the connections whose cost is measured.
MEASURED = "measured"
LOOPBACK = {"SB_NOTIFICATION_ALLOWED_NETWORKS": "127.0.0.0/8"}
OPEN = "SELECT count(*) FROM secrets_bridge_worker.notification_delivery WHERE finished_at IS NULL"
#: No vacuum and no checkpoint of the server's own in the middle of a measurement.
QUIET = {"autovacuum": "off", "max_wal_size": "8GB", "checkpoint_timeout": "1h"}


@dataclass
class World:
    """Servers of one measurement, and a connection to PostgreSQL."""

    directory: Path
    postgres: Postgres
    redis: GrantedRedis
    sql: Connection[Any]

    def env(self, **more: str) -> dict[str, str]:
        """Return a worker's environment with these servers, quick cadences and `more`."""
        return self.usual(**{**QUICK, **more})

    def usual(self, **more: str) -> dict[str, str]:
        """Return a worker's environment with these servers and `more`, all else by default."""
        return {**environment(self.postgres.url(user=ROLE), self.redis.url()), **LOOPBACK, **more}

    def process(self, command: tuple[str, ...], name: str, env: dict[str, str]) -> Process:
        """Start a process; its context ends it."""
        return Process(command, env, self.directory / f"{name}.log")

    def drained(self, seconds: float) -> float:
        """Wait, for so many seconds at most, until no delivery is open; return how many that took."""
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            if self.sql.execute(OPEN.encode()).fetchone() == (0,):
                break
            time.sleep(0.05)
        return time.monotonic() - started

    def url(self, port: int | None = None) -> str:
        """Return the URL of connections whose cost is measured, through a proxy's port if one is given."""
        through = self.postgres.url(user=ROLE).replace(f":{self.postgres.port}/", f":{port or self.postgres.port}/")
        return f"{through}?application_name={MEASURED}"

    @contextmanager
    def replica(self, port: int | None = None, redis_port: int | None = None) -> Iterator[Replica]:
        """Yield a replica with a pool as the worker's, which has a connection already."""
        lease = timedelta(seconds=15)
        pool = postgres.pool(DatabaseSettings(url=self.url(port)), lease / 2)  # type: ignore[arg-type]
        with pool, redis_py.Redis(port=redis_port or self.redis.port) as client:
            with pool.connection() as connection:
                connection.execute("SELECT 1")
            with Replica(pool, client, lease=lease) as replica:
                yield replica


def child(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Start a process that ends with this one; what it prints is for this one, as text."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=signal_at_parent_death,  # noqa: PLW1509 - only prctl is called
        **options,
    )


@contextmanager
def world(
    *, durable: bool = False, settings: Mapping[str, str] | None = None, programs: Path | None = None
) -> Iterator[World]:
    """Start servers with both schemas."""
    with (
        tempfile.TemporaryDirectory(prefix="sb-bench-") as name,
        Postgres(Path(name), durable=durable, settings=settings, programs=programs) as server,
        GrantedRedis(Path(name)) as redis,
        psycopg.connect(server.url(), autocommit=True) as connection,
    ):
        connection.execute((ROOT / "app" / "demo" / "control_plane.sql").read_bytes())
        migrations.migrate(connection)
        granted(server.url())
        yield World(Path(name), server, redis, connection)
