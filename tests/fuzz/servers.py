"""Servers for one target that is fuzzed by itself."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import psycopg

from app.demo.ports import reserved_port
from app.demo.servers import Postgres, Redis
from app.storage import migrations

CONTROL_PLANE = Path(__file__).parents[2] / "app" / "demo" / "control_plane.sql"


class OwnServers:
    """Started when they are asked for, ended with the body."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def postgres(self) -> str:
        """Start a PostgreSQL and return the URL of a database with both schemas."""
        server = self._stack.enter_context(Postgres(self._directory(), port=self._port()))
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE control_plane")
        with psycopg.connect(server.url("control_plane"), autocommit=True) as connection:
            connection.execute(CONTROL_PLANE.read_bytes())
            migrations.migrate(connection)
        return server.url("control_plane")

    def redis(self) -> str:
        """Start a Redis and return its URL."""
        return self._stack.enter_context(Redis(self._directory(), port=self._port())).url()

    def _directory(self) -> Path:
        return Path(self._stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))

    def _port(self) -> int:
        return self._stack.enter_context(reserved_port())
