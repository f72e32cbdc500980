"""What a deployment holds, and what may still be there when all of its processes are gone."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import psutil
import redis as redis_py

from tests.chaos.history import Leftover

if TYPE_CHECKING:
    from psycopg import Connection

    from tests.chaos.deployment import Deployment

#: Descriptors and threads that a process may have more than a while after its start: pools grow with the load, and each
#: of a notifier's threads keeps connections to each receiver. What leaks with each fault is more after a round; what
#: leaks slowly is what `make soak` is for.
SLACK_FILES, SLACK_THREADS = 140, 25
#: Seconds after which a process is measured for the first time, and between two looks for such processes.
GROWN, LOOK = 3.0, 2.0
#: Seconds in which PostgreSQL notices that a client is gone.
NOTICED = 10.0

_TAKEN = re.compile(r"dramatiq:__acks__\.(?P<consumer>[0-9a-f-]+)\.(?P<queue>[a-zA-Z.]+)")
#: Keys that stay, and why.
KEYS = {
    r"\{secrets-bridge:lock:worker:sweeper:[a-z-]+\}:tick": "the newest finished slot of a sweeper, for a week",
    r"secrets-bridge:lock:discover:[0-9a-f-]{36}": "a connection that was started rests for a minute",
    r"dramatiq:__heartbeats__": "when each consumer was last seen; those who are gone are removed by the next one",
    r"dramatiq:sinks": "when to try again, come as the last notifier ended; what is open is looked for in PostgreSQL",
    r"dramatiq:(sinks|sweeps)\.DQ(\.msgs)?": "when to try again what the relay, or a later tick, has done meanwhile",
    _TAKEN.pattern: "what a consumer had taken that was killed; put back a minute after its last heartbeat",
    r"dramatiq:(sinks|sweeps)\.msgs": "those messages themselves",
}
_CONNECTIONS = """
SELECT application_name, state FROM pg_stat_activity
 WHERE usename = 'secrets_bridge_worker_role' AND backend_type = 'client backend'
"""
_LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
_ROWS = {
    "runs that are still open": "SELECT count(*) FROM secrets_bridge_worker.sweep_run WHERE outcome = 'running'",
    "deliveries that are still open": (
        "SELECT count(*) FROM secrets_bridge_worker.notification_delivery WHERE finished_at IS NULL"
    ),
    "deliveries that are still reserved": (
        "SELECT count(*) FROM secrets_bridge_worker.notification_delivery WHERE lease_until IS NOT NULL"
    ),
    "pauses that are still there": (
        "SELECT count(*) FROM secrets_bridge_worker.sweeper_pause WHERE resumed_at IS NULL AND until > now()"
    ),
    "wraps that outlive the session that they were shown in": (
        "SELECT count(*) FROM secret_wraps JOIN reveal_sessions ON secret_wraps.id = ANY (wrap_ids)"
        " WHERE expired_at IS NOT NULL AND secret_wraps.expires_at > now()"
        " AND secret_wraps.id::text NOT IN (SELECT id FROM chaos.renewed WHERE relation = 'secret_wraps')"
    ),
    "receivers that are still off": (
        "SELECT count(*) FROM secrets_bridge_worker.notification_target WHERE off_fingerprint IS NOT NULL"
    ),
}
_NOT_ENDED = (  # a scheduler is ended by the signal at once, and says nothing
    "SELECT count(*) FROM secrets_bridge_worker.process"
    " WHERE pid = ANY (%s) AND ended_at IS NULL AND kind <> 'scheduler'"
)


_IDLE = """
SELECT application_name FROM pg_stat_activity
 WHERE usename = 'secrets_bridge_worker_role' AND state LIKE 'idle in transaction%'
   AND state_change < clock_timestamp() - interval '5 s'
"""


class Held(NamedTuple):
    """What one process holds."""

    name: str
    files: int
    threads: int


class Baseline:
    """What each process of a round held soon after it was first seen."""

    def __init__(self) -> None:
        #: By its id.
        self.held: dict[str, Held] = {}
        self._seen: dict[str, float] = {}
        self._looked = -LOOK

    def look(self, deployment: Deployment) -> None:
        """Measure those that have been there for long enough, if the last look is long ago. Call it all the time."""
        now = time.monotonic()
        if now < self._looked + LOOK:
            return
        self._looked = now
        for pid, one in held(deployment).items():
            if now >= self._seen.setdefault(pid, now) + GROWN:
                self.held.setdefault(pid, one)


def held(deployment: Deployment) -> dict[str, Held]:
    """Return what each process holds that lives now, by its id."""
    found = {}
    for name in list(deployment.processes):
        for pid in deployment.pids(name):
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                found[str(pid)] = Held(name, process.num_fds(), process.num_threads())
    return found


def left_of_processes(before: Mapping[str, Held], after: Mapping[str, Held]) -> Iterator[Leftover]:
    """Yield each process that holds many more descriptors or threads than it did, if it is still the same one."""
    if not before.keys() & after.keys():
        yield Leftover("descriptors", "no process was there for long enough to be compared")
    for pid in before.keys() & after.keys():
        was, now = before[pid], after[pid]
        if now.files > was.files + SLACK_FILES:
            yield Leftover("descriptors", f"{was.name}: {was.files} before, {now.files} after")
        if now.threads > was.threads + SLACK_THREADS:
            yield Leftover("threads", f"{was.name}: {was.threads} before, {now.threads} after")


def idle_in_transaction(sql: Connection[Any]) -> list[str]:
    """Return the names of the processes that have had a transaction open for seconds and do nothing in it."""
    return [name for (name,) in sql.execute(_IDLE).fetchall()]


def left_in_postgres(sql: Connection[Any], pids: Collection[int]) -> Iterator[Leftover]:
    """Yield connections, locks and rows of processes that are gone, which were these."""
    until = time.monotonic() + NOTICED
    while (found := sql.execute(_CONNECTIONS).fetchall()) and time.monotonic() < until:
        time.sleep(0.1)
    for name, state in found:
        yield Leftover("connection", f"of {name}, {state}")
    if locks := _count(sql, _LOCKS):
        yield Leftover("lock", f"{locks} advisory locks")
    for what, query in _ROWS.items():
        if number := _count(sql, query):
            yield Leftover("rows", f"{number} {what}")
    if number := _count(sql, _NOT_ENDED, [list(pids)]):
        yield Leftover("rows", f"{number} processes that have ended without a word")


def left_in_redis(client: redis_py.Redis) -> Iterator[Leftover]:
    """Yield each key that may not be there, and messages that nobody will ever take."""
    names = sorted(key.decode(errors="replace") for key in client.scan_iter(count=1000))
    for name in names:
        if not any(re.fullmatch(pattern, name) for pattern in KEYS):
            yield Leftover("key", name)
    consumers = {name.decode() for name in cast("list[bytes]", client.zrange("dramatiq:__heartbeats__", 0, -1))}
    taken = [match for name in names if (match := _TAKEN.fullmatch(name))]
    for match in taken:
        if match["consumer"] not in consumers:
            yield Leftover("key", f"{match[0]}: nobody knows any more that its consumer is dead")
    for queue in ("sweeps", "sinks"):
        own = [match[0] for match in taken if match["queue"] == queue]
        known = {
            *client.lrange(f"dramatiq:{queue}", 0, -1),
            *(number for key in own for number in client.smembers(key)),
        }
        if lost := len(set(client.hkeys(f"dramatiq:{queue}.msgs")) - known):
            yield Leftover("messages", f"{lost} of the queue {queue} are in no list")


def _count(sql: Connection[Any], query: str, parameters: list[Any] | None = None) -> int:
    row = sql.execute(query.encode(), parameters).fetchone()
    assert row is not None
    return int(row[0])
