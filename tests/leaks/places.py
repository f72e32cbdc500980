"""Where canaries are looked for: all that the deployment writes, keeps, shows and sends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import redis as redis_py
from psycopg import Connection

from tests.support.processes import Process
from tests.tracing.collector import Collector, body

PAGES = ("/metrics", "/healthz", "/readyz", "/", "/still", "/configuration", "/status.json", "/none")


def pages(name: str, process: Process) -> Iterator[tuple[str, str]]:
    """Yield what a process shows."""
    for path in PAGES:
        answer = process.get(path)
        yield f"page {path} of the {name}", f"{answer.headers}\n{answer.text}"


def redis_keys(client: redis_py.Redis) -> Iterator[tuple[str, str]]:
    """Yield every key and what it holds."""
    for key in client.scan_iter(count=1000):
        yield "names of keys in Redis", key.decode(errors="replace")
        yield "Redis", "\n".join(content.decode(errors="replace") for content in _content(client, key))


def _content(client: Any, key: bytes) -> list[bytes]:
    kind = client.type(key)
    if kind == b"string":
        return [client.get(key) or b""]
    if kind == b"hash":
        return [part for pair in client.hgetall(key).items() for part in pair]
    if kind == b"list":
        return list(client.lrange(key, 0, -1))
    if kind == b"set":
        return list(client.smembers(key))
    return list(client.zrange(key, 0, -1)) if kind == b"zset" else []


def tables(sql: Connection[Any]) -> Iterator[tuple[str, str]]:
    """Yield all rows of our own schema."""
    names = sql.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'secrets_bridge_worker'").fetchall()
    for (name,) in names:
        for (row,) in sql.execute(f"SELECT t::text FROM secrets_bridge_worker.{name} AS t".encode()):
            yield f"table {name}", row


def traces(collector: Collector) -> Iterator[tuple[str, str]]:
    """Yield the spans that were sent, and the headers of the requests."""
    for seen in list(collector.seen):
        yield "traces", body(seen).decode("latin-1")
        for name, value in seen.headers.items():
            yield f"header {name} to the collector", value


def files(place: str, directories: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Yield names and contents of the files that are left below these directories."""
    for directory in directories:
        for path in directory.rglob("*"):
            yield place, str(path.relative_to(directory))
            if path.is_file():
                yield place, path.read_bytes().decode("latin-1")


def statements(log: Path, role: str) -> Iterator[tuple[str, str]]:
    """Yield what a server that logs all of it, after `<role>`, was sent by a role: statements and parameters."""
    kept = False
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("\t"):
            kept = line.startswith(
                (f"<{role}> LOG:  ", f"<{role}> DETAIL:  Parameters: ", f"<{role}> DETAIL:  parameters: ")
            )
        if kept:
            yield "statements to PostgreSQL", line.removeprefix(f"<{role}> ")
