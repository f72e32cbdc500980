"""A deployment of its own for the drill: servers, a role without more privileges than it needs, three processes."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import psycopg
import redis as redis_py
from psycopg import Connection

from app.demo.ports import reserved_port
from app.demo.servers import Postgres
from app.storage import migrations
from tests.support.http_server import Receiver
from tests.support.processes import ROOT, SCHEDULER, WORKER, Process, environment, finished
from tests.support.rights.acl import GrantedRedis
from tests.support.rights.grants import granted

CONTROL_PLANE = ROOT / "app" / "demo" / "control_plane.sql"
#: Cadences under which an incident shows soon, and a drill of twelve is over in minutes.
CADENCES = {
    "SB_SWEEP_WRAPS_INTERVAL": "2s",
    "SB_SWEEP_SECRETS_INTERVAL": "2s",
    "SB_SWEEP_AGENTS_INTERVAL": "2s",
    "SB_SWEEP_JOBS_INTERVAL": "2s",
    "SB_SWEEP_DISCOVER_STUCK_INTERVAL": "2s",
    "SB_SWEEP_REVEAL_INTERVAL": "2s",
    "SB_SWEEP_CROSS_TEAM_FILL_INTERVAL": "2s",
    "SB_WORKER_NAME": "drill",
}
# A worker whose machine's clock is ahead, as far as it says so: the one thing of it that others are shown.
_CLOCK_AHEAD = """
import sys
from datetime import datetime, timedelta
from app.fleet import signs_of_life
class Ahead(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + timedelta(minutes=10)
signs_of_life.datetime = Ahead
from tests.support.rights.acl import GrantedRedis
from dramatiq.__main__ import main
sys.argv[0] = "dramatiq"
sys.exit(main())
"""


class Deployment:
    """A worker, a notifier and a scheduler on servers of their own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self._logs = 0
        self.processes: dict[str, Process] = {}

    def __enter__(self) -> Self:
        enter = self._stack.enter_context
        self.postgres = enter(Postgres(self._directory, port=enter(reserved_port())))
        self.redis = enter(GrantedRedis(self._directory, port=enter(reserved_port())))
        self.receiver = enter(Receiver())
        with self.sql() as sql:
            sql.execute(CONTROL_PLANE.read_bytes())
            migrations.migrate(sql)
        self.env = environment(
            granted(self.postgres.url()),
            self.redis.url(),
            **CADENCES,
            SB_NOTIFICATION_WEBHOOK_URL=f"{self.receiver.url}/hook",
            SB_NOTIFICATION_ALLOWED_NETWORKS="127.0.0.0/8",
            COLUMNS="100",
        )
        self.start("worker")
        self.start("notifier")
        self.start("scheduler")
        return self

    def __exit__(self, *words: object) -> None:
        for process in self.processes.values():
            process.__exit__(None)
        self._stack.close()

    @contextmanager
    def sql(self) -> Iterator[Connection[Any]]:
        """Yield a superuser's connection, each statement committed."""
        with psycopg.connect(self.postgres.url(), autocommit=True) as connection:
            yield connection

    def client(self) -> redis_py.Redis:
        """Return a client of Redis."""
        return redis_py.Redis.from_url(self.redis.owner_url())

    def start(self, kind: str, name: str = "", **variables: str) -> None:
        """Start a process of a kind, under a name of its own where there are several."""
        words: Sequence[str] = {
            "worker": (*WORKER, "--queues", "sweeps"),
            "notifier": (*WORKER, "--queues", "sinks"),
            "scheduler": SCHEDULER,
            "worker whose clock is ahead": (sys.executable, "-c", _CLOCK_AHEAD, *WORKER[1:], "--queues", "sweeps"),
        }[kind]
        self._logs += 1
        log = self._directory / f"process-{self._logs}.log"
        self.processes[name or kind] = Process(words, {**self.env, **variables}, log)

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End a process by a signal, and wait for its end."""
        process = self.processes.pop(name)
        process.end(number)
        process.__exit__(None)

    def command(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a command of ours, as a shell would."""
        return finished(shlex.split(line), self.env)
