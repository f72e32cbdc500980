"""Receivers that fail, each by itself and in each way that HTTP and TCP know."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta

from tests.chaos.deployment import Deployment
from tests.chaos.faults.damage import (
    GARBAGE,
    HANDSHAKE_CUT,
    HUNG_UP,
    REFUSED,
    RESET,
    SILENCE,
    STRANGE_CERTIFICATE,
    Damage,
    answering,
    fail_with,
    next_of,
    on_the_wire,
    treating,
    ways,
)
from tests.chaos.faults.fault import Counted
from tests.chaos.faults.telling import attempts_that_failed
from tests.chaos.surroundings.commands import sb_worker
from tests.chaos.surroundings.outside import ELSEWHERE, Outside
from tests.chaos.surroundings.wire import Treat
from tests.support.http_server import (
    Reply,
    Seen,
    body_drip,
    body_that_breaks_off,
    endless,
    header_drip,
)

#: Seconds that a receiver fails for: shorter and longer than an attempt may take.
SHORTEST, LONGEST = 1.0, 4.0
#: Seconds that pass before a late answer: longer than an attempt may take.
LATE = 2.5
#: How often it is looked whether a request is there.
_LOOKS = 400

#: Notifications are given up so soon that some are, and requests to ArgoCD.
IMPATIENT = {"SB_NOTIFICATION_GIVE_UP": "25s", "SB_WORKER_GITOPS_HTTP_TIMEOUT": "2s"}


def taking(name: str, treat: Treat) -> Damage:
    """Return damage to connections that begins with "200": what was asked counts as accepted, whatever comes then."""

    def way(outside: Outside, server: str) -> AbstractContextManager[None]:
        def noted(connection: socket.socket, healed: threading.Event) -> None:
            if (seen := _read_ahead(connection)) is not None:
                outside.servers[server].accepted.append(seen)
            treat(connection, healed)

        return outside.wires[server].treating(noted)

    return on_the_wire(name, way)


def _read_ahead(connection: socket.socket) -> Seen | None:
    """Return the request that is there to be read, and leave it there; None when it is none."""
    for _ in range(_LOOKS):
        data = connection.recv(1 << 20, socket.MSG_PEEK)
        head, end, body = data.partition(b"\r\n\r\n")
        if not data or not head.startswith(b"POST"):
            return None
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines[1:])}
        if end and len(body) >= int(headers.get("content-length", "0")):
            return Seen("POST", lines[0].split()[1], headers, body)
        time.sleep(0.005)  # the rest is on its way: what is looked at and left there wakes nobody
    return None


def _date() -> str:
    return (datetime.now(UTC) + timedelta(seconds=2)).strftime("%a, %d %b %Y %H:%M:%S GMT")


def _status(status: int, body: bytes = b"no", **headers: str) -> Callable[[Outside], Reply]:
    return lambda _outside: Reply(status, body, {name.replace("_", "-"): text for name, text in headers.items()})


#: What passes: the attempt is repeated, with the same id.
TRANSIENT = (
    answering("500", _status(500)),
    answering("503, Retry-After: 1", _status(503, Retry_After="1")),
    answering("503, Retry-After: a date", lambda _outside: Reply(503, b"", {"Retry-After": _date()})),
    answering("503, Retry-After: absurd", _status(503, Retry_After="9" * 30)),
    answering("taken, but answered too late", _status(200), late=LATE),
    REFUSED,
    RESET,
    HUNG_UP,
    taking("broken off", body_that_breaks_off(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok")),
    treating("headers without an end", header_drip),
    taking("a body without an end", body_drip),
    taking("a body as fast as it goes", endless),
    SILENCE,
    GARBAGE,
)
#: What ends a notification: it is dead then, and listed.
PERMANENT = (
    answering("400", _status(400)),
    answering("404", _status(404)),
    answering("410", _status(410)),
    answering("401", _status(401)),
    answering("429, Retry-After: 1", _status(429, Retry_After="1")),
    answering("redirect", lambda outside: Reply(302, b"", {"Location": outside.servers["webhook"].url + ELSEWHERE})),
)
#: Without TLS the first bytes that come back are the answer, with it they are the handshake.
TAKEN_AND_CUT = (
    on_the_wire("taken, but the answer cut off", lambda outside, server: outside.wires[server].cutting_answers(0)),
    on_the_wire("taken, but half an answer", lambda outside, server: outside.wires[server].cutting_answers(9)),
)
DAMAGES = (*TRANSIENT, *PERMANENT)
SLACKS = (HANDSHAKE_CUT, STRANGE_CERTIFICATE, answering("invalid_blocks", _status(400, b"invalid_blocks")))


def failing(server: str, target: str, damages: Sequence[Damage]) -> Counted:
    """Return the fault that has one receiver fail for some seconds in one of its ways, and puts it back into use.

    It counts when an attempt met the fault, or has told of it. Sweeps go on.
    """

    def fault(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
        damage = next_of(deployment, server, chance, damages)
        told = attempts_that_failed(deployment, target, damage.told) if damage.told else None
        seconds = chance.uniform(SHORTEST, LONGEST)
        fail_with(deployment, "sink", server, damage, told=told, wait=lambda: over.wait(seconds))
        if damage.name in {"401", "410"}:
            sb_worker(deployment, "notify", "enable", target, allowed={0, 1})
        if deployment.outside.went_elsewhere:
            deployment.remarks.append(f"{target}: a redirect was followed")

    return Counted(fault, ("sink", f"sink: {server}", *ways(server, damages)))


fail_webhook = failing("webhook", "webhook", (*DAMAGES, *TAKEN_AND_CUT))
fail_slack = failing("slack", "slack", (*DAMAGES, *SLACKS))
