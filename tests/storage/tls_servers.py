"""A PostgreSQL and a Redis of the system's packages, which speak TLS as those from wheels do not."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg

from app.demo.ports import reserved_port
from app.demo.servers import Postgres, Redis, _other_user
from tests.support.packages import postgres_with_tls, program
from tests.support.tls import Authority

# Who may come in, and how: postgres anyhow, the others by the way of their name, anybody else not at all.
_HBA = """
host    all postgres     127.0.0.1/32 trust
hostssl all tls          127.0.0.1/32 trust
host    all login        127.0.0.1/32 scram-sha-256
hostssl all certified    127.0.0.1/32 cert
host    all limited,dumb 127.0.0.1/32 trust
"""
_ROLES = """
CREATE ROLE tls LOGIN;
CREATE ROLE login LOGIN PASSWORD 'right';
CREATE ROLE certified LOGIN;
CREATE ROLE limited LOGIN CONNECTION LIMIT 0;
CREATE ROLE dumb;
CREATE DATABASE closed;
REVOKE CONNECT ON DATABASE closed FROM PUBLIC;
CREATE DATABASE shut ALLOW_CONNECTIONS false;
"""


@contextmanager
def tls_postgres(authority: Authority, *names: str, **certificate: Any) -> Iterator[Postgres]:
    """Run a PostgreSQL with a certificate for these names."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sb-tls-")))
        place.chmod(0o755)
        chain, key = authority.files(place, *names, **certificate)
        access = place / "hba"
        access.write_text(_HBA)
        for path in (chain, access):
            path.chmod(0o644)
        key.chmod(0o600)
        if (user := _other_user()) is not None:
            os.chown(key, user, -1)
        ca = place / "ca.crt"
        ca.write_bytes(authority.file.read_bytes())
        ca.chmod(0o644)
        settings = {"ssl": "on", "ssl_cert_file": chain, "ssl_key_file": key, "ssl_ca_file": ca, "hba_file": access}
        port = stack.enter_context(reserved_port())
        server = stack.enter_context(
            Postgres(
                place,
                port=port,
                programs=postgres_with_tls(),
                settings={name: str(value) for name, value in settings.items()},
            )
        )
        with psycopg.connect(server.url(), autocommit=True) as connection:
            for statement in filter(str.strip, _ROLES.split(";")):
                connection.execute(statement.encode())
        yield server


@contextmanager
def tls_redis(directory: Path, authority: Authority, *names: str, **certificate: Any) -> Iterator[tuple[Redis, int]]:
    """Run a Redis; yield it, with its port without TLS, and its port with TLS and a certificate for these names."""
    server = program("redis-server", "redis-server")
    chain, key = authority.files(directory, *names, **certificate)
    with reserved_port() as port, reserved_port() as tls_port:
        options = ["--tls-port", tls_port, "--tls-cert-file", chain, "--tls-key-file", key]
        options += ["--tls-ca-cert-file", authority.file, "--tls-auth-clients", "no"]
        with Redis(directory, port=port, program=server, options=[str(option) for option in options]) as running:
            yield running, tls_port
