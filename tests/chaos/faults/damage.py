"""What is done to a server outside, or to the way there, and who met it; and what can be done to any of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from tests.chaos.surroundings.outside import Outside
from tests.chaos.surroundings.wire import Treat, until_it_hangs_up
from tests.support.http_server import Reply, Seen, hang_up, nonsense, reset


class Damage(NamedTuple):
    """A way to fail: makes a context in which the server fails, and counts into the list who met it."""

    name: str
    during: Callable[[Outside, str, list[str]], AbstractContextManager[None]]


def answering(name: str, make: Callable[[Outside], Reply], *, late: float = 0.0) -> Damage:
    """Return damage that is an answer, after so many seconds."""

    @contextmanager
    def during(outside: Outside, server: str, met: list[str]) -> Iterator[None]:
        healed = threading.Event()
        reply = make(outside)

        def answer(seen: Seen) -> Reply:
            met.append(seen.path)
            healed.wait(late)
            return reply

        with outside.answering(server, answer):
            yield
        healed.set()

    return Damage(name, during)


def on_the_wire(name: str, way: Callable[[Outside, str], AbstractContextManager[None]]) -> Damage:
    """Return damage that is done to connections."""

    @contextmanager
    def during(outside: Outside, server: str, met: list[str]) -> Iterator[None]:
        wire = outside.wires[server]
        before = wire.met
        with way(outside, server):
            yield
        met.extend([server] * (wire.met - before))

    return Damage(name, during)


def treating(name: str, treat: Treat) -> Damage:
    """Return damage that is done to each connection."""
    return on_the_wire(name, lambda outside, server: outside.wires[server].treating(treat))


REFUSED = on_the_wire("refused", lambda outside, server: outside.wires[server].closed())
HANDSHAKE_CUT = on_the_wire("half a handshake", lambda outside, server: outside.wires[server].cutting_answers(99))
STRANGE_CERTIFICATE = on_the_wire(
    "a strange certificate", lambda outside, server: outside.with_a_strange_certificate(server)
)
RESET = treating("reset", reset)
HUNG_UP = treating("hung up", hang_up)
SILENCE = treating("silence", until_it_hangs_up)
GARBAGE = treating("garbage", nonsense)
#: What nobody here sees: connections that do not come about, or end before there is a request.
UNSEEN = frozenset({REFUSED.name, STRANGE_CERTIFICATE.name})
