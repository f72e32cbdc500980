"""What is done to a server outside, or to the way there, and who met it; and what can be done to any of them."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import psycopg

from tests.chaos.surroundings.outside import Outside
from tests.chaos.surroundings.wire import Treat, until_it_hangs_up
from tests.support.http_server import Reply, Seen, hang_up, nonsense, reset

if TYPE_CHECKING:
    from tests.chaos.deployment import Deployment


class Damage(NamedTuple):
    """A way to fail: makes a context in which the server fails, and counts into the list who met it."""

    name: str
    during: Callable[[Outside, str, list[str]], AbstractContextManager[None]]
    #: For what is not seen here, as connections that do not come about: the reason that who met it writes down.
    told: str = ""


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

        try:
            with outside.answering(server, answer):
                yield
        finally:
            healed.set()

    return Damage(name, during)


def on_the_wire(name: str, way: Callable[[Outside, str], AbstractContextManager[None]], *, told: str = "") -> Damage:
    """Return damage that is done to connections."""

    @contextmanager
    def during(outside: Outside, server: str, met: list[str]) -> Iterator[None]:
        wire = outside.wires[server]
        before = wire.met
        with way(outside, server):
            yield
        met.extend([server] * (wire.met - before))

    return Damage(name, during, told)


def treating(name: str, treat: Treat) -> Damage:
    """Return damage that is done to each connection."""
    return on_the_wire(name, lambda outside, server: outside.wires[server].treating(treat))


REFUSED = on_the_wire("refused", lambda outside, server: outside.wires[server].closed(), told="connect")
HANDSHAKE_CUT = on_the_wire("half a handshake", lambda outside, server: outside.wires[server].cutting_answers(99))
STRANGE_CERTIFICATE = on_the_wire(
    "a strange certificate", lambda outside, server: outside.with_a_strange_certificate(server), told="tls"
)
RESET = treating("reset", reset)
HUNG_UP = treating("hung up", hang_up)
SILENCE = treating("silence", until_it_hangs_up)
GARBAGE = treating("garbage", nonsense)


def fail_with(  # noqa: PLR0913 - a fault, and what a strike is given
    deployment: Deployment,
    kind: str,
    server: str,
    damage: Damage,
    *,
    told: Callable[[], bool] | None,
    wait: Callable[[], object],
) -> None:
    """Have a server fail while it is waited, and count that if somebody met it: seen here, or `told` by who did."""
    met: list[str] = []
    with (
        deployment.log.during(kind, outage=False, note=f"{server}: {damage.name}"),
        damage.during(deployment.outside, server, met),
    ):
        wait()
        with suppress(psycopg.Error):  # it is not known then, and does not count
            if told is not None and told():
                met.append(server)
    if met:
        deployment.log.effect(kind)
        deployment.log.effect(f"{server}: {damage.name}")
        if server != kind:  # one of several
            deployment.log.effect(f"{kind}: {server}")


def next_of(deployment: Deployment, server: str, chance: random.Random, damages: Sequence[Damage]) -> Damage:
    """Return each way once, in an order of chance, before the first one comes again; sooner what nobody has met yet."""
    struck = Counter(fault.note for fault in deployment.log.faults)
    names = {damage: f"{server}: {damage.name}" for damage in damages}
    turns = {damage: struck[name] + 2 * deployment.log.effects[name] for damage, name in names.items()}
    return chance.choice([damage for damage in damages if turns[damage] == min(turns.values())])


def ways(server: str, damages: Sequence[Damage]) -> tuple[str, ...]:
    """Return the kinds of effects by which the ways to fail are told apart."""
    return tuple(f"{server}: {damage.name}" for damage in damages)
