"""An ArgoCD that fails in each way: statuses, documents of any kind, slowness, and all that goes wrong on the wire."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

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
    ways,
)
from tests.chaos.faults.fault import counting
from tests.chaos.faults.telling import polls_that_failed
from tests.chaos.surroundings.outside import Outside
from tests.support.argocd import error, reply
from tests.support.http_server import Reply

SHORTEST, LONGEST = 1.0, 4.0
#: Seconds that a slow ArgoCD takes for an answer, and one that is too slow: longer than a request may take.
SLOW, TOO_SLOW = 0.5, 3.0


def _answer(content: Reply) -> Callable[[Outside], Reply]:
    return lambda _outside: content


def _json(name: str, content: object) -> Damage:
    return answering(f"wrong types: {name}", _answer(reply(content)))


DAMAGES = (
    answering("500", _answer(error(500, 13, "internal"))),
    answering("503", _answer(Reply(503, b"<html>", {"Retry-After": "1"}))),
    answering("401", _answer(error(401, 16, "no session information"))),
    answering("403", _answer(error(403, 7, "permission denied"))),
    answering("404", _answer(error(404, 5, "not found"))),
    answering("429", _answer(Reply(429, b"", {"Retry-After": "1"}))),
    answering("a page", _answer(Reply(200, b"<html>sign in</html>", {"Content-Type": "text/html"}))),
    answering("a redirect", _answer(Reply(302, b"", {"Location": "/login"}))),
    answering("half of a document", _answer(Reply(200, b'{"metadata": {"na', {"Content-Type": "application/json"}))),
    answering("bytes", _answer(Reply(200, bytes(range(256)), {"Content-Type": "application/json"}))),
    answering("a nest", _answer(Reply(200, b"[" * 100_000, {"Content-Type": "application/json"}))),
    _json("a list", []),
    _json("null", None),
    _json("a number as status", {"metadata": {"name": "service-0"}, "status": 7}),
    _json("a list as health", {"status": {"health": ["Healthy"], "sync": {"status": 1, "revision": {}}}}),
    _json("an object as operation", {"status": {"operationState": {"phase": {}, "finishedAt": "soon"}}}),
    answering("slow", lambda outside: _of_an_application(outside), late=SLOW),
    answering("too slow", lambda outside: _of_an_application(outside), late=TOO_SLOW),
    REFUSED,
    HANDSHAKE_CUT,
    STRANGE_CERTIFICATE,
    RESET,
    HUNG_UP,
    SILENCE,
    GARBAGE,
)


def _of_an_application(outside: Outside) -> Reply:
    return reply(outside.argo.applications["service-0"])


@counting("argocd", *ways("argocd", DAMAGES))
def fail_argocd(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """Have ArgoCD fail for some seconds, each way once before the first one comes again.

    It counts when a request met the fault, or a poll has told of it. Observations wait, or time out; sweeps go on.
    """
    damage = next_of(deployment, "argocd", chance, DAMAGES)
    told = polls_that_failed(deployment) if damage.told else None
    seconds = chance.uniform(SHORTEST, LONGEST)
    fail_with(deployment, "argocd", "argocd", damage, told=told, wait=lambda: over.wait(seconds))
