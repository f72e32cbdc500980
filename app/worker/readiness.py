"""Whether this replica can do its work now: what /readyz says.

A server that answers may still be of no use: a standby after a failover, a replica, one without memory, one that
denies what the worker needs. So each check does what the work does. Why a check failed is a word of a closed set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import redis
from redis.exceptions import NoPermissionError

from app.storage.redis_reasons import reason
from app.worker.fresh import Fresh
from app.worker.probe_server import Answer, Pending

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg_pool import ConnectionPool

#: Kubernetes gives a probe one second; a server that hangs must not make the probe hang with it.
CHECK_SECONDS = 0.8
#: How old a result may be, so that many who ask cost a server no more than one.
FRESH_SECONDS = 1.0


class Unready(StrEnum):
    """Why a server is of no use now; never a server's own words."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    READ_ONLY = "read_only"
    NO_ROOM = "no_room"
    DENIED = "denied"
    FAILED = "failed"


#: Returns why not, or None. What it raises is reduced to a word.
Check = Callable[[], Unready | None]


class Readiness:
    """The state of this process, and that of the servers it needs."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks = {name: Fresh(name, partial(_judged, check), FRESH_SECONDS) for name, check in checks.items()}
        self.booted = False
        self.draining = False

    @property
    def state(self) -> str:
        """What this process does: `booting`, `ready` for work, or `draining`; nothing about servers."""
        if self.draining:
            return "draining"
        return "ready" if self.booted else "booting"

    def pending(self) -> Pending:
        """Return the answer of /readyz; it waits for the checks, unless they do not matter."""
        if not self.booted:
            return Pending(lambda: _answer({"status": "booting"}))
        if self.draining:
            return Pending(lambda: _answer({"failing": {"worker": "draining"}, "status": "not_ready"}))
        results = {name: check.future() for name, check in self._checks.items()}
        return Pending(lambda: _verdict(results), results.values(), CHECK_SECONDS)


def _judged(check: Check) -> Unready | None:
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - the answer is a word
        return _word(error)


def _verdict(results: Mapping[str, Future[Unready | None]]) -> Answer:
    failing = {name: word for name, result in results.items() if (word := _result(result)) is not None}
    return _answer({"failing": failing, "status": "not_ready"} if failing else {"status": "ready"})


def _result(result: Future[Unready | None]) -> Unready | None:
    if not result.done():
        return Unready.TIMEOUT
    return Unready.FAILED if result.exception() else result.result()


def _answer(body: dict[str, Any]) -> Answer:
    text = json.dumps(body, separators=(",", ":"), sort_keys=True) + "\n"
    return Answer(200 if body["status"] == "ready" else 503, text.encode())


# A standby is asked nothing more: what it says of privileges is true, and of no use.
_POSTGRES: LiteralString = """
SELECT CASE WHEN pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean THEN 'read_only'
            WHEN has_table_privilege('secrets_bridge_worker.sweep_state', 'SELECT')
             AND has_table_privilege('secrets_bridge_worker.sweep_state', 'UPDATE') THEN NULL
            ELSE 'denied' END
"""


def postgres_check(pool: ConnectionPool[Connection[Any]]) -> Check:
    """Return a check that PostgreSQL takes writes, and lets us write to our schema."""

    def check() -> Unready | None:
        with pool.connection(timeout=CHECK_SECONDS) as connection:
            row = connection.execute(_POSTGRES).fetchone()
        return Unready(row[0]) if row and row[0] else None

    return check


# What the lock's scripts do, and the broker's, each on a key that nobody else ever sees, in one step.
_LOCK = """
redis.call('TIME')
for at = 1, 2 do
  redis.call('SET', KEYS[at], '0', 'PX', ARGV[1])
  redis.call('GET', KEYS[at])
  redis.call('PEXPIRE', KEYS[at], ARGV[1])
  redis.call('DEL', KEYS[at])
end
"""
_QUEUE = """
for _, command in ipairs({'RPUSH', 'SADD'}) do
  redis.call(command, KEYS[1], '0')
  redis.call('DEL', KEYS[1])
end
redis.call('HSET', KEYS[1], '0', '0')
redis.call('DEL', KEYS[1])
redis.call('ZADD', KEYS[1], 0, '0')
redis.call('DEL', KEYS[1])
"""
_PROBE_MS = 1000


def redis_check(client: redis.Redis, namespace: str, queue_namespace: str) -> Check:
    """Return a check that Redis takes the writes of locks and queues, below their prefixes."""
    lock = f"{namespace}:lock:worker:sweeper:readiness"
    locks, queues = client.register_script(_LOCK), client.register_script(_QUEUE)

    def check() -> Unready | None:
        locks(keys=[lock, f"{{{lock}}}:tick"], args=[_PROBE_MS])
        queues(keys=[f"{queue_namespace}:readiness"])
        return None

    return check


# What a server says, else what redis-py makes of it: it has refused logins and loading servers among its connection
# errors, and so the first that fits counts.
_REDIS_WORDS = {
    "READONLY": Unready.READ_ONLY,
    "MISCONF": Unready.READ_ONLY,
    "NOREPLICAS": Unready.READ_ONLY,
    "MASTERDOWN": Unready.READ_ONLY,
    "OOM": Unready.NO_ROOM,
    "NOPERM": Unready.DENIED,
    "NOAUTH": Unready.DENIED,
    "WRONGPASS": Unready.DENIED,
}
_CLASSES: tuple[tuple[type[Exception], Unready], ...] = (
    (redis.AuthenticationError, Unready.DENIED),
    (NoPermissionError, Unready.DENIED),
    (redis.ReadOnlyError, Unready.READ_ONLY),
    (redis.OutOfMemoryError, Unready.NO_ROOM),
    (redis.TimeoutError, Unready.TIMEOUT),
    (redis.ConnectionError, Unready.UNREACHABLE),
)
_SQLSTATES = (
    ("42501", Unready.DENIED),
    ("28", Unready.DENIED),
    ("25", Unready.READ_ONLY),
    ("53", Unready.NO_ROOM),
    ("08", Unready.UNREACHABLE),
    ("57", Unready.UNREACHABLE),
)


def _word(error: Exception) -> Unready:
    if isinstance(error, psycopg.Error):
        state = error.sqlstate or "08"  # one without has not reached a server
        return next((word for sign, word in _SQLSTATES if state.startswith(sign)), Unready.FAILED)
    if isinstance(error, redis.ResponseError) and (known := _REDIS_WORDS.get(reason(error))):
        return known
    return next((word for kind, word in _CLASSES if isinstance(error, kind)), Unready.FAILED)
