"""Makes everything go wrong that can, one thing after the other, and waits until each has."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from functools import partial

from tests.leaks.deployment import Deployment
from tests.leaks.planting.scene import HEAL, OF_RUNS
from tests.leaks.planting.servers import refusals
from tests.support.processes import Process
from tests.support.waiting import HUNG_PROCESS, eventually

_SWEEPS, _SINKS = "dramatiq:sweeps", "dramatiq:sinks"
_TOLD = ("webhook", "slack", "pagerduty", "teams", "discord", "apprise", "heartbeat")


def until(deployment: Deployment, what: str, found: Callable[[], object]) -> None:
    """Wait for something, and say what did not come."""
    try:
        eventually(found, HUNG_PROCESS)
    except AssertionError:
        logs = "\n".join(process.text[-1500:] for process in deployment.processes.values())
        raise AssertionError(f"not seen: {what}\n{logs}") from None


def rows_fail(deployment: Deployment) -> None:
    """Have every kind of error met by a row, or by a run."""
    with deployment.postgres.superuser() as sql:
        until(deployment, "every kind of error", lambda: not deployment.scene.not_met(sql))
    until(deployment, "each ArgoCD's answer", lambda: {"401", "500", "fine"} <= _answered(deployment, "argocd"))
    deployment.look()


def messages_are_malformed(deployment: Deployment) -> None:
    """Put messages into the queues that nobody of ours has sent."""
    said = deployment.canaries["message"]
    whole = {
        "queue_name": "sweeps",
        "actor_name": "agents-stale",
        "args": [],
        "kwargs": {},
        "options": {"redis_message_id": said, "traceback": said, "requeue_timestamp": said, "actor_queue": said},
        "message_id": said,
        "message_timestamp": 1,
    }
    bodies = [
        said,
        f'{{"{said}": ',
        json.dumps(said),
        json.dumps(whole | {"actor_name": said}),
        json.dumps(whole | {"args": [said]}),
        json.dumps(whole | {"kwargs": {said: said}}),
        json.dumps(whole | {"queue_name": said}),
        json.dumps(whole | {"message_timestamp": said}),
    ]
    with deployment.client() as client:
        for queue in (_SWEEPS, _SINKS):
            for text in bodies:
                number = secrets.token_hex(8)
                client.hset(f"{queue}.msgs", number, text)
                client.rpush(queue, number)
    line = "message put aside, it is malformed"
    for name in ("worker", "notifier"):
        process = deployment.processes[name]
        until(deployment, f"{line}, of the {name}", partial(_has, process, line, len(bodies)))


def redis_refuses(deployment: Deployment) -> None:
    """Have Redis say no in every way, each with a canary in it."""
    words = refusals(deployment.canaries["Redis error"])
    before = deployment.interposer.refused
    deployment.interposer.refusals = words
    until(deployment, "refusals of Redis", lambda: deployment.interposer.refused >= before + 2 * len(words))
    deployment.interposer.refusals = []


def postgres_refuses(deployment: Deployment) -> None:
    """Have PostgreSQL not know our password, and then not want us at all."""
    server = deployment.postgres

    def told(text: str) -> bool:
        return text in server.log.read_text(encoding="utf-8", errors="replace")

    with server.superuser("postgres") as sql:
        sql.execute(f"ALTER ROLE {server.role} PASSWORD 'another'".encode())
        server.cut(sql)
    until(deployment, "a wrong password", lambda: told("password authentication failed"))
    server.admit("reject")
    until(deployment, "a refusal of pg_hba.conf", lambda: told("pg_hba.conf rejects"))
    deployment.look()
    with server.superuser("postgres") as sql:
        sql.execute(f"ALTER ROLE {server.role} PASSWORD '{server.password}'".encode())
    server.admit("scram-sha-256")


def all_is_told(deployment: Deployment) -> None:
    """Heal what keeps sweepers from good runs, and wait until each receiver has refused and taken something."""
    with deployment.postgres.superuser() as sql:
        sql.execute(HEAL, [OF_RUNS])
    for who in _TOLD:
        for word in ("500", "302", "200"):
            until(deployment, f"{word} of {who}", partial(deployment.echo.answered.get, (who, word)))
    until(deployment, "a mail", lambda: deployment.mail.got)


def rows_leak(deployment: Deployment) -> None:
    """Have agents fail, and wait until a build that leaks has had its occasions."""
    until(deployment, "a failed run", lambda: '"agents-stale"' in deployment.processes["worker"].text)
    for who in ("webhook", "teams", "apprise"):
        until(deployment, f"a request to {who}", partial(deployment.echo.answered.get, (who, "500")))
    until(deployment, "a mail", lambda: deployment.mail.got)
    until(deployment, "a failed run that was told", lambda: _told_of_failures(deployment))
    deployment.look()


def _has(process: Process, line: str, times: int) -> bool:
    return process.text.count(line) >= times


def _answered(deployment: Deployment, who: str) -> set[str]:
    return {word for one, word in deployment.echo.answered if one == who}


def _told_of_failures(deployment: Deployment) -> bool:
    return any(b"agents-stale" in seen.body and b"failed" in seen.body for seen in list(deployment.receiver.seen))
