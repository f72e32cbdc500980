"""A mail server that fails: at each step of the conversation, after it, in TLS, and on the wire."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.chaos.faults.damage import (
    GARBAGE,
    HUNG_UP,
    REFUSED,
    RESET,
    SILENCE,
    STRANGE_CERTIFICATE,
    Damage,
    on_the_wire,
    treating,
)
from tests.chaos.faults.sinks import LATE, failing
from tests.chaos.surroundings.mailbox import TARGET
from tests.chaos.surroundings.outside import Outside
from tests.support.http_server import banner_drip, greeting


def replying(name: str, *, late: float = 0.0, hangs_up: bool = False, **replies: str) -> Damage:
    """Return damage that is a reply at a step, or what comes of a mail that is taken."""

    @contextmanager
    def during(outside: Outside, _server: str, met: list[str]) -> Iterator[None]:
        given = replies or {"DATA": "250 OK"}
        with outside.mailbox.failing(met, given, late=late, hangs_up=hangs_up):
            yield

    return Damage(name, during)


def _without_tls(connection: socket.socket, healed: threading.Event) -> None:
    """Take part in a conversation without ever offering STARTTLS."""
    del healed
    connection.sendall(b"220 here\r\n")
    while connection.recv(65_536):
        connection.sendall(b"250 OK\r\n")


#: A reply of 4yz passes, one of 5yz ends a notification: it is dead then, and listed.
DAMAGES = (
    replying("421 at MAIL", MAIL="421 4.3.2 closing"),
    replying("451 at MAIL", MAIL="451 4.3.0 later"),
    replying("450 at RCPT", RCPT="450 4.2.1 greylisted"),
    replying("452 at DATA", DATA="452 4.3.1 full"),
    replying("550 at MAIL", MAIL="550 5.7.1 no"),
    replying("550 at RCPT", RCPT="550 5.1.1 unknown"),
    replying("554 at DATA", DATA="554 5.6.0 no"),
    replying("taken, but answered too late", late=LATE),
    replying("taken, but hung up", hangs_up=True),
    REFUSED,
    STRANGE_CERTIFICATE,
    on_the_wire("half a reply", lambda outside, server: outside.wires[server].cutting_answers(9)),
    treating("greeted with 421", greeting(b"421 4.3.2 too many")),
    treating("greeted with 554", greeting(b"554 5.3.2 no service")),
    treating("greeted without an end", banner_drip),
    treating("STARTTLS not offered", _without_tls),
    RESET,
    HUNG_UP,
    SILENCE,
    GARBAGE,
)
fail_email = failing("email", TARGET, DAMAGES)
