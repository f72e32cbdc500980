"""The end of a round: everything comes to rest and is ended, and what is left behind is written down."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tests.chaos.ending.leftovers import (
    Held,
    held,
    idle_in_transaction,
    left_in_postgres,
    left_in_redis,
    left_of_processes,
)
from tests.chaos.faults.rolling import ENDINGS
from tests.chaos.history import Leftover
from tests.chaos.surroundings.commands import sb_worker
from tests.support.processes import lives
from tests.support.waiting import HUNG, HUNG_PROCESS

if TYPE_CHECKING:
    from psycopg import Connection

    from tests.chaos.deployment import Deployment

#: Seconds in which what the round has left open is to be done: a lease, a retry of a sink, the relay's next look.
PATIENCE = 60.0
#: Seconds that a process may take to end after SIGTERM: SB_WORKER_SHUTDOWN_GRACE, and a few to leave.
GRACE = 20.0
_OPEN = """
SELECT (SELECT count(*) FROM secrets_bridge_worker.notification_delivery WHERE finished_at IS NULL) AS deliveries,
       (SELECT count(*) FROM secrets_bridge_worker.sweep_run
         WHERE outcome = 'running' AND started_at < now() - interval '5 s') AS runs,
       (SELECT count(*) FROM gitops_observations
         WHERE polling_state IN ('queued', 'active') AND timeout_at < now() - interval '5 s') AS observations
"""
_OFF = "SELECT name FROM secrets_bridge_worker.notification_target WHERE off_fingerprint IS NOT NULL"
# After a night, but without the night: receivers that wanted to be left alone, and waits that grow with each attempt.
_TIME_PASSES = (
    "UPDATE secrets_bridge_worker.notification_target SET rests_until = now() WHERE rests_until > now()",
    "UPDATE secrets_bridge_worker.notification_delivery SET due_at = now() WHERE state = 'pending' AND due_at > now()",
)
_TICKED = """
SELECT ticked_at FROM secrets_bridge_worker.process WHERE pid = %s AND kind = 'scheduler'
 ORDER BY started_at DESC LIMIT 1
"""
_DEAD = "SELECT id FROM secrets_bridge_worker.notification_delivery WHERE state = 'dead'"


def settle(deployment: Deployment, before: Mapping[str, Held], *, timed: bool = False) -> list[Leftover]:
    """Wait until nothing is open, end all processes by SIGTERM, and return what is left behind.

    `before` is what processes held soon after their start. With `timed` it is also judged by how long that took.
    """
    patience, grace = (PATIENCE, GRACE) if timed else (HUNG_PROCESS, HUNG_PROCESS)
    with deployment.sql() as sql:
        left = [*_unfinished(deployment, sql, patience), *_not_listed(deployment, sql)]
        deployment.note_deaths()
        left += _hung(deployment, sql)
        if not _wait(lambda: not idle_in_transaction(sql)):
            left += [Leftover("idle in transaction", name) for name in idle_in_transaction(sql)]
        left += left_of_processes(before, held(deployment))
        pids = {pid for name in deployment.processes for pid in deployment.pids(name)}
        for kind, queues in (("scheduler", ("sweeps", "sinks")), ("worker", ("sinks",)), ("notifier", ())):
            left += _ended(deployment, kind, grace)
            left += _untaken(deployment, queues)
        left += left_in_postgres(sql, pids if timed else ())  # on a busy machine a last word may find no time
    with deployment.client() as client:
        left += left_in_redis(client)
    return left


def _wait(condition: Callable[[], object], seconds: float = PATIENCE) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def _unfinished(deployment: Deployment, sql: Connection[Any], patience: float) -> Iterator[Leftover]:
    """Put everything back into use that an operator has stopped or a receiver has lost, and wait for what is open."""
    deployment.rolled = {}
    sb_worker(deployment, "resume", "all", allowed={0, 1})
    for (name,) in sql.execute(_OFF).fetchall():
        sb_worker(deployment, "notify", "enable", name, allowed={0, 1})
    for statement in _TIME_PASSES:
        sql.execute(statement.encode())
    found: tuple[Any, ...] = ()

    def done() -> bool:
        nonlocal found
        found = sql.execute(_OPEN).fetchone() or ()
        return not any(found)

    if not _wait(done, patience):
        deliveries, runs, observations = found
        yield Leftover(
            "open",
            f"{deliveries} deliveries, {runs} runs and {observations} observations are open after {patience:.0f} s",
        )


def _not_listed(deployment: Deployment, sql: Connection[Any]) -> Iterator[Leftover]:
    """Compare what is dead with what an operator is told of it."""
    dead = {number for (number,) in sql.execute(_DEAD)}
    done = sb_worker(deployment, "dead", "list", "--limit", "1000000", "--json", allowed={0}, unwell=())
    listed = {json.loads(line)["id"] for line in done.stdout.splitlines()} if done else set()
    if dead != listed:
        yield Leftover("dead", f"{len(dead - listed)} dead letters are not listed, {len(listed - dead)} are not dead")


def _hung(deployment: Deployment, sql: Connection[Any]) -> Iterator[Leftover]:
    """Ask each process whether it is ready; a scheduler answers nobody, but writes down when it has sent a tick."""
    for name, process in deployment.processes.items():
        if process.popen.poll() is not None:
            continue
        if name.startswith("scheduler"):
            last = _ticked(sql, process.popen.pid)
            if not _wait(lambda pid=process.popen.pid, last=last: _ticked(sql, pid) != last, HUNG):  # type: ignore[misc]
                yield Leftover("hung", f"{name} has sent no tick for {HUNG:.0f} s")
            continue
        if not _wait(lambda process=process: process.get("/readyz").status_code == 200, HUNG):  # type: ignore[misc]
            answers = ", ".join(f"{path} {process.get(path).status_code}" for path in ("/healthz", "/readyz"))
            yield Leftover("hung", f"{name}: {answers}")


def _ticked(sql: Connection[Any], pid: int) -> datetime | None:
    row = sql.execute(_TICKED, [pid]).fetchone()
    return row[0] if row else None


def _ended(deployment: Deployment, kind: str, grace: float) -> Iterator[Leftover]:
    """End the processes of one kind; each ends with status 0 in time, and so do its children."""
    names = [name for name in deployment.names(kind) if deployment.processes[name].popen.poll() is None]
    for name in names:
        deployment.processes[name].popen.send_signal(signal.SIGTERM)
    for name in names:
        popen, family = deployment.processes[name].popen, deployment.pids(name)
        try:
            status = popen.wait(grace)
        except subprocess.TimeoutExpired:
            yield Leftover("status", f"{name} has not ended {grace:.0f} s after SIGTERM")
            continue
        if status not in ENDINGS[kind]:
            yield Leftover("status", f"{name} ended with status {status} after SIGTERM")
        if not _wait(lambda family=family: not _alive(family), 5):  # type: ignore[misc]
            yield Leftover("process", f"{name} left processes behind: {len(_alive(family))}")


def _alive(family: list[int]) -> list[int]:
    return [pid for pid in family if lives(pid)]


def _untaken(deployment: Deployment, queues: Sequence[str]) -> Iterator[Leftover]:
    """Wait until what was sent by those who are gone is taken by those who are left."""
    with deployment.client() as client:
        if not _wait(lambda: not any(client.llen(f"dramatiq:{queue}") for queue in queues)):
            yield Leftover("messages", f"messages of {', '.join(queues)} are taken by nobody")
