"""What stands between a worker and its servers: PgBouncer and HAProxy, of the system's packages."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

from app.demo.servers import _other_user, _Server
from tests.support.packages import program


class _Between(_Server):
    """A server with a configuration file, in a directory that its user can read."""

    def __init__(self, port: int, configuration: str) -> None:
        self._program = program(self.name, self.name)  # first: where it is missing, nothing is to be left
        self._place = tempfile.TemporaryDirectory(prefix=f"sb-{self.name}-")
        Path(self._place.name).chmod(0o755)
        super().__init__(Path(self._place.name), port)
        self.configuration = self.directory / "configuration"
        self.configuration.write_text(configuration)

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._place.cleanup()

    def _answers(self) -> None:
        socket.create_connection(("127.0.0.1", self.port), timeout=5).close()


class PgBouncer(_Between):
    """A pooler in transaction mode with three sessions, in front of a PostgreSQL at this port."""

    name = "pgbouncer"

    def __init__(self, port: int, target: int, *, database: str, user: str, settings: str = "") -> None:
        super().__init__(
            port,
            f"""
[databases]
{database} = host=127.0.0.1 port={target} dbname={database} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
{settings}
""",
        )

    def start(self) -> None:
        """Start it and wait until it listens."""
        self._launch([self._program, self.configuration], self._answers, _other_user())


class HAProxy(_Between):
    """A proxy for TCP in front of a server at this port, which it looks for, and whose idle connections it ends."""

    name = "haproxy"

    def __init__(self, port: int, target: int, *, idle_seconds: int = 1) -> None:
        super().__init__(
            port,
            f"""
global
    maxconn 100
defaults
    mode tcp
    timeout connect 1s
    timeout client {idle_seconds}s
    timeout server {idle_seconds}s
listen it
    bind 127.0.0.1:{port}
    server one 127.0.0.1:{target} check inter 100ms fall 1 rise 1
""",
        )

    def start(self) -> None:
        """Start it and wait until it listens."""
        self._launch([self._program, "-db", "-f", self.configuration], self._answers)
