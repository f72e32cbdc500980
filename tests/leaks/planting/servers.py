"""PostgreSQL and Redis behind logins that are canaries, and a way to have Redis refuse us in every word it knows."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import psycopg

from app.demo.servers import Postgres
from tests.leaks.canaries import Canaries

_HBA = """
local all all trust
host all postgres 127.0.0.1/32 trust
host "{database}" "{role}" 127.0.0.1/32 {way}
"""
#: The server writes down what it is sent, and not what it answers: that is its own affair.
_LOGGING = {"log_statement": "all", "log_min_messages": "log", "log_line_prefix": "<%u> "}


class StrictPostgres(Postgres):
    """A PostgreSQL that wants a password of everybody but its superuser, and logs every statement."""

    def __init__(self, directory: Path, port: int, canaries: Canaries) -> None:
        home = Path(tempfile.mkdtemp(prefix="sb-leaks-"))
        super().__init__(directory, port=port, settings=_LOGGING, home=home)
        self._hba = home / "data" / "pg_hba.conf"
        self.role, self.password = canaries["DATABASE_URL user"], canaries["DATABASE_URL password"]
        self.name = canaries["DATABASE_URL database"]
        self.application = canaries["DATABASE_URL application_name"]

    def start(self) -> None:
        """Start it, with a role for the worker and a database of its own."""
        super().start()
        with self.superuser("postgres") as sql:
            sql.execute(f"CREATE DATABASE {self.name}".encode())
            sql.execute("ALTER ROLE postgres SET log_statement = 'none'")  # ours are not what is looked at
            sql.execute(f"CREATE ROLE {self.role} LOGIN PASSWORD '{self.password}'".encode())
        self.admit("scram-sha-256")

    @contextmanager
    def superuser(self, database: str = "") -> Iterator[psycopg.Connection[tuple[object, ...]]]:
        """Yield a superuser's connection, each statement committed."""
        with psycopg.connect(self.url(database or self.name), autocommit=True) as connection:
            yield connection

    def admit(self, way: str) -> None:
        """Let the worker in this way: `scram-sha-256`, or `reject`; who is connected is cut off."""
        self._hba.write_text(_HBA.format(database=self.name, role=self.role, way=way))
        with self.superuser("postgres") as sql:
            sql.execute("SELECT pg_reload_conf()")
            self.cut(sql)

    def cut(self, sql: psycopg.Connection[tuple[object, ...]]) -> None:
        """Kill the worker's backends."""
        sql.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [self.role])

    @property
    def worker_url(self) -> str:
        """Return a DATABASE_URL in which everything that may be secret is a canary."""
        place = f"127.0.0.1:{self.port}/{self.name}"
        return f"postgres://{self.role}:{self.password}@{place}?application_name={self.application}"


class Interposer:
    """Stands before a Redis, and answers in its place while it has `refusals`, each in its turn."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.refusals: list[bytes] = []
        self.refused = 0
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self._listener, *self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._open):
            end.close()

    def _start(self, target: Callable[..., None], *args: object) -> None:
        self._threads.append(threading.Thread(target=target, args=args, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._open += (client, server)
                self._start(self._pump, client, server, True)
                self._start(self._pump, server, client, False)

    def _pump(self, source: socket.socket, sink: socket.socket, refusing: bool) -> None:
        with suppress(OSError):
            while content := source.recv(65536):
                if refusing and (words := self.refusals):
                    self.refused += 1
                    source.sendall(words[self.refused % len(words)])
                    break
                sink.sendall(content)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def refusals(said: str) -> list[bytes]:
    """Return errors of Redis that quote something, one that is no protocol, and one that is too much of it."""
    codes = (
        *("NOAUTH", "WRONGPASS", "NOPERM", "OOM", "READONLY", "LOADING", "MISCONF", "MASTERDOWN", "CLUSTERDOWN"),
        *(f"MOVED 1 {said}.invalid:1", "NOSCRIPT", "WRONGTYPE", "ERR", "BUSY", "TRYAGAIN", "EXECABORT"),
    )
    errors = [f"-{code} {said}\r\n".encode() for code in codes]
    return [*errors, f"HTTP/1.1 400 {said}\r\n\r\n".encode(), f"*1\r\n$-{said}\r\n".encode(), f":{said}\r\n".encode()]
