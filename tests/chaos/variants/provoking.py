"""What makes defects show: each provocation brings about what its defects get wrong, and waits for nothing but that."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, LiteralString

from tests.chaos.faults.points import closed
from tests.support.http_server import Reply
from tests.support.waiting import HUNG

if TYPE_CHECKING:
    from tests.chaos.deployment import Deployment

#: Wraps whose deletion takes more than one transaction.
MANY = 6_000
#: Seconds between two looks whether a defect was found, and until a provocation is tried once more.
LOOK, PATIENCE = 0.25, 10.0
LOCK = "secrets-bridge:lock:worker:sweeper:wraps-expired"
Found = Callable[[], bool]

_MANY: LiteralString = """
INSERT INTO secret_wraps (encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash, byte_length,
                          expires_at)
SELECT '\\x01', '\\x02', '\\x03', 'local:chaos', '\\x04', 1, now() FROM generate_series(1, %s)
"""
_RENEW: LiteralString = """
WITH due AS (
    SELECT id FROM secret_wraps WHERE expires_at < now() ORDER BY random() LIMIT 5 FOR UPDATE SKIP LOCKED
), kept AS (
    UPDATE secret_wraps SET expires_at = now() + interval '10 days' WHERE id IN (SELECT id FROM due) RETURNING id
) INSERT INTO chaos.renewed SELECT 'secret_wraps', id::text FROM kept ON CONFLICT DO NOTHING
"""
_RUNNING: LiteralString = """
SELECT count(*) FROM secrets_bridge_worker.sweep_run
 WHERE name = 'wraps-expired' AND outcome = 'running' AND batches > 0
"""
_SUCCESSES: LiteralString = """
SELECT count(*) FROM secrets_bridge_worker.sweep_run WHERE name = 'wraps-expired' AND outcome = 'success'
"""
_TOKEN: LiteralString = "SELECT token FROM secrets_bridge_worker.sweep_state WHERE name = 'wraps-expired'"
_WAITS: LiteralString = """
SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%%sweep_state%%'
"""
_CUT: LiteralString = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s AND wait_event = 'advisory'
"""


def _number(sql: Any, query: LiteralString) -> int:
    row = sql.execute(query).fetchone()
    return int(row[0]) if row else 0


def _in_the_middle(deployment: Deployment, strike: Callable[[str], None]) -> bool:
    """Strike a worker in the second transaction of a run, or a later one, while it is open; return whether it was."""
    until = time.monotonic() + PATIENCE
    with deployment.sql() as sql:
        many_until = 0.0
        while (now := time.monotonic()) < until:
            if now > many_until:
                many_until = now + PATIENCE / 4
                sql.execute(_MANY, [MANY])
            if not _number(sql, _RUNNING):
                time.sleep(0.002)
                continue
            with closed(deployment, "secret_wraps") as gate:
                names = [name for name in gate.wait(0.5) if name in deployment.processes]
                if names and _number(sql, _RUNNING):
                    strike(names[0])
                    return True
    return False


def calm(deployment: Deployment, found: Found) -> None:
    """Let it sweep."""
    del deployment, found


def rest(deployment: Deployment, found: Found) -> None:
    """Let it sweep until another sweeper has succeeded many times."""
    del found
    until = time.monotonic() + HUNG
    with deployment.sql() as sql:
        before = _number(sql, _SUCCESSES)
        while time.monotonic() < until and _number(sql, _SUCCESSES) < before + 8:
            time.sleep(LOOK)


def renew(deployment: Deployment, found: Found) -> None:
    """Renew wraps that are due, as long as they are there."""
    until = time.monotonic() + PATIENCE / 4
    with deployment.sql() as sql:
        while time.monotonic() < until and not found():
            sql.execute(_RENEW)


def late(deployment: Deployment, found: Found) -> None:
    """Have a scheduler's ticks come when their slots are done: stop it in each slot for a while."""
    until = time.monotonic() + PATIENCE / 4
    while time.monotonic() < until and not found():
        with deployment.log.during("stop", outage=False, note="scheduler1"):
            deployment.signal("scheduler1", signal.SIGSTOP)
            time.sleep(0.6)
            deployment.signal("scheduler1", signal.SIGCONT)
        time.sleep(0.2)


def stop(deployment: Deployment, found: Found) -> None:
    """Stop a worker in the middle of a batch, take its lock, and wake it up once another one claims."""
    del found
    stopped: list[str] = []

    def strike(name: str) -> None:
        deployment.signal(name, signal.SIGSTOP)
        stopped.append(name)

    with deployment.sql() as sql, deployment.log.during("stop", outage=False, note="worker"):
        try:
            if not _in_the_middle(deployment, strike):
                return
            token = _number(sql, _TOKEN)
            with deployment.client() as client:
                client.delete(LOCK)
            until = time.monotonic() + 2.5
            while time.monotonic() < until and _number(sql, _TOKEN) == token and not _number(sql, _WAITS):
                time.sleep(0.01)
        finally:
            for name in stopped:
                deployment.signal(name, signal.SIGCONT)


def kill(deployment: Deployment, found: Found) -> None:
    """Kill a worker in the middle of a batch, and start it again."""
    del found
    struck: list[str] = []

    def strike(name: str) -> None:
        deployment.kill(name)
        struck.append(name)

    with deployment.log.during("kill", outage=True, note="worker"):
        _in_the_middle(deployment, strike)
        with deployment.client() as client:
            client.delete(LOCK)  # which would have run out by itself, later
        for name in struck:
            deployment.start(name).ready()


def cut(deployment: Deployment, found: Found) -> None:
    """Have the server end a worker's session in the middle of a batch: its run fails, and the next one begins."""
    del found

    def strike(name: str) -> None:
        with deployment.sql() as sql:
            sql.execute(_CUT, [name])

    with deployment.log.during("cut", outage=True, note="worker"):
        _in_the_middle(deployment, strike)


def refuse(deployment: Deployment, found: Found) -> None:
    """Have the webhook's receiver refuse for a while."""
    over = threading.Event()
    until = time.monotonic() + 3
    with (
        deployment.log.during("sink", outage=False, note="webhook"),
        deployment.outside.answering("webhook", Reply(503)),
    ):
        while time.monotonic() < until and not found():
            over.wait(LOOK)


PROVOCATIONS: Mapping[str, Callable[[Deployment, Found], None]] = {
    "calm": calm,
    "rest": rest,
    "renew": renew,
    "late": late,
    "stop": stop,
    "kill": kill,
    "cut": cut,
    "refuse": refuse,
}
