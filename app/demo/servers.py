"""Real PostgreSQL and Redis servers for the demo and the tests.

Nothing stays behind: not after an exception, not after Ctrl-C (the servers have sessions of their own and are stopped
by their owner), and on Linux not after kill -9 of the owner either (the kernel stops them). Both listen on free ports
of the loopback interface.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import psycopg
import redis

from app.demo.binaries import postgres_programs, redis_program
from app.demo.ports import reserved_port
from app.supervisor.parent_death import signal_at_parent_death

#: Seconds that a server may take to start, and to stop before it is killed.
_START_SECONDS = 30
_NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
#: Bytes of /dev/shm below which PostgreSQL is not to use it, as in a container with Docker's default.
_SMALL_SHM = 64 * 2**20


class ServerFailed(Exception):
    """A server did not start; the text ends with the last lines of its log."""


class _Server:
    """A process in a session of its own, with a log."""

    name = "server"
    stop_signal = signal.SIGTERM

    def __init__(self, directory: Path, port: int | None) -> None:
        self.directory = directory
        #: Holds a port of its own until it is left, through all its starts and stops.
        self._ports = ExitStack()
        self.port = port or self._ports.enter_context(reserved_port())
        self.log = directory / f"{self.name}.log"
        #: Variables of its environment on top of ours, from its next start on.
        self.environment: Mapping[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:  # Ctrl-C, too
            self.stop()
            self._ports.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._ports.close()

    def start(self) -> None:
        """Start and wait until it answers. Raises ServerFailed when it does not within 30 seconds."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop it orderly and wait; after 30 seconds it is killed."""
        self._end(self.stop_signal)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            try:
                self.process.wait(_START_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def _launch(self, command: Sequence[object], answers: Callable[[], object], user: int | None = None) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(argument) for argument in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={**os.environ, **self.environment},
                start_new_session=True,
                preexec_fn=lambda: _prepare(self.stop_signal, user),  # noqa: PLW1509 - no threads run at this point
            )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                answers()
            except (psycopg.Error, redis.RedisError, OSError):
                if self.process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                self.stop()
                tail = self.log.read_text(errors="replace")[-2000:]
                raise ServerFailed(f"{self.name} did not start:\n{tail}") from None
            return


class Postgres(_Server):
    """A PostgreSQL cluster of its own, with its log in `directory`, superuser `postgres`, database `secrets_bridge`."""

    name = "postgres"
    stop_signal = signal.SIGINT  # its fast shutdown

    def __init__(  # noqa: PLR0913 - what a cluster may be
        self,
        directory: Path,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        durable: bool = False,
        programs: Path | None = None,
        home: Path | None = None,
    ) -> None:
        """`home` is where the cluster is, by default in a temporary directory of its own."""
        super().__init__(directory, port)
        self._programs = programs or postgres_programs()
        self._settings = {**({} if durable else _NOT_DURABLE), **(settings or {})}
        self._user = _other_user()
        # A directory of its own: a socket's path may have 107 bytes at most, which a test's directory often exceeds,
        # and another user must be able to reach it.
        self._home = home or Path(tempfile.mkdtemp(prefix="sb-pg-"))
        self._home.mkdir(mode=0o700, exist_ok=True)
        self._data = self._home / "data"
        if self._user is not None:
            os.chown(self._home, self._user, -1)

    def start(self) -> None:
        """Create the cluster when it is not there, start it, and create the database."""
        if not self._data.exists():
            self._create()
        self._run()
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            row = connection.execute("SELECT count(*) FROM pg_database WHERE datname = 'secrets_bridge'").fetchone()
            if row == (0,):
                connection.execute("CREATE DATABASE secrets_bridge")

    def __exit__(self, *_: object) -> None:
        """Stop, and remove the cluster."""
        super().__exit__()
        shutil.rmtree(self._home, ignore_errors=True)

    def crash(self) -> None:
        """Stop at once, as a power cut would; start() recovers."""
        self._end(signal.SIGQUIT)

    def as_standby(self) -> None:
        """Start it, which has been stopped, as a standby without a primary; pg_promote() ends that."""
        (self._data / "standby.signal").touch()
        self._run()

    def url(self, database: str = "secrets_bridge", user: str = "postgres") -> str:
        """Return a DATABASE_URL."""
        return f"postgres://{user}@127.0.0.1:{self.port}/{database}"

    def _run(self) -> None:
        options = [f"-c{name}={value}" for name, value in self._options().items()]
        self._launch([self._programs / "postgres", "-D", self._data, *options], self._answers, self._user)

    def _answers(self) -> None:
        psycopg.connect(self.url("postgres"), connect_timeout=5).close()

    def _options(self) -> dict[str, str]:
        shared = shutil.disk_usage("/dev/shm") if Path("/dev/shm").is_dir() else None  # noqa: S108 - only measured
        small = {} if shared and shared.free > _SMALL_SHM else {"dynamic_shared_memory_type": "mmap"}
        listen = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self._home),
            "max_connections": "200",
        }
        return {**(small if sys.platform == "linux" else {}), **listen, **self._settings}

    def _create(self) -> None:
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
        done = subprocess.run(
            [self._programs / "initdb", "-D", self._data, "--no-instructions", *options],
            capture_output=True,
            cwd="/",
            check=False,
            start_new_session=True,  # Ctrl-C is for the owner
            preexec_fn=lambda: _prepare(self.stop_signal, self._user),
        )
        if done.returncode:
            shutil.rmtree(self._data, ignore_errors=True)
            raise ServerFailed(f"initdb failed:\n{done.stderr.decode(errors='replace')[-2000:]}")


class Redis(_Server):
    """A Redis (or Valkey) server that keeps nothing on disk."""

    name = "redis"

    def __init__(
        self, directory: Path, *, port: int | None = None, program: Path | None = None, options: Sequence[str] = ()
    ) -> None:
        super().__init__(directory, port)
        self._program = program or redis_program()
        self._options = options

    def start(self) -> None:
        """Start it empty and wait until it answers. Raises ServerFailed."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._launch([self._program, *options, "--dir", self.directory, *self._options], self._answers)

    def kill(self) -> None:
        """End it with SIGKILL; its data is lost."""
        self._end(signal.SIGKILL)

    def url(self, database: int = 0) -> str:
        """Return a REDIS_URL."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    def _answers(self) -> None:
        with redis.Redis(port=self.port, socket_timeout=5) as client:
            client.ping()


def _prepare(on_death: signal.Signals, user: int | None) -> None:
    """Run in the child before it becomes the server: change the user if need be, and end with the owner."""
    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    signal_at_parent_death(on_death)


def _other_user() -> int | None:
    """Return the id of a user to run PostgreSQL as, which refuses root; None when we are not root."""
    if os.getuid() != 0:
        return None
    try:
        return pwd.getpwnam("nobody").pw_uid
    except KeyError:
        return 65534
