"""A replica of the Go worker, as far as ours can notice it: its ticker, its locks, its statements."""

from __future__ import annotations

import secrets
import threading
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import NamedTuple, Self

import psycopg
import redis

#: One statement for each tick, without bounds; the clock of the application decides, which is the database's here.
_STATEMENTS = {
    "wraps-expired": "DELETE FROM secret_wraps WHERE expires_at <= now()",
    "secrets-stale": "UPDATE secrets SET status = 'missing'"
    " WHERE status = 'present' AND last_seen_at < now() - '24h'::interval",
    "agents-stale": "UPDATE agents SET status = 'stale'"
    " WHERE status = 'active' AND last_seen_at < now() - '5m'::interval",
    "jobs-recovery": "UPDATE sync_jobs SET status = 'expired' WHERE status = 'claimed' AND claim_expires_at < now()",
}
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
_LEASE_SECONDS = 15.0


class Held(NamedTuple):
    """A time in which it held a sweeper's lock, by PostgreSQL's clock, and how many rows it changed."""

    name: str
    since: datetime
    until: datetime
    changed: int


class GoReplica:
    """Ticks for each sweeper from its own start on, every so many seconds; takes the lock, works, gives it back."""

    def __init__(self, database: str, redis_url: str, *, every: float, lease: float = _LEASE_SECONDS) -> None:
        self.held: list[Held] = []
        self._lease_ms = round(lease * 1000)
        self._database, self._redis_url, self._every = database, redis_url, every
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._tick, args=(name,)) for name in _STATEMENTS]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _tick(self, name: str) -> None:
        while not self._stopped.is_set():
            with suppress(psycopg.Error, redis.RedisError):  # servers that fail are what some tests are about
                self._work(name)
            self._stopped.wait(self._every)

    def _work(self, name: str) -> None:
        key = f"secrets-bridge:lock:worker:sweeper:{name}"
        with psycopg.connect(self._database, autocommit=True) as sql, redis.Redis.from_url(self._redis_url) as store:
            while not self._stopped.wait(self._every):
                token = secrets.token_hex(16)
                if not store.set(key, token, nx=True, px=self._lease_ms):
                    continue
                since = _now(sql)
                changed = sql.execute(_STATEMENTS[name].encode()).rowcount
                until = _now(sql)
                store.eval(_RELEASE, 1, key, token)
                self.held.append(Held(name, since, until, changed))


def _now(sql: psycopg.Connection) -> datetime:
    row = sql.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    moment: datetime = row[0]
    return moment
