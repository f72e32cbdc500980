"""Every sink, over real sockets: whatever a receiver answers, an attempt ends in a word of the closed set."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st
from structlog.testing import capture_logs

from app.core.errors import Fault, SinkRejected, SinkUnavailable
from app.notify.delivery.send import attempt
from app.notify.routing import Target as Receiver
from app.notify.routing import targets
from app.notify.settings import NotificationSettings
from app.notify.transport import NetworkTransport
from sinks import SINKS
from tests.fuzz.http_answers import wholes
from tests.fuzz.target import Holds, Servers, Target
from tests.fuzz.texts import CANARY, environment, spoiled
from tests.fuzz.wire import Script, Speak, Speaker, answer_requests, loop, scripts
from tests.support.outcome import FAILED, LOOPBACK, NOTE
from tests.support.waiting import HUNG

KEY = "0123456789abcdef0123456789ABCDEF"
SHORT = 0.1
#: A code is a status or a vendor's word; nothing that a server said.
_CODE = re.compile(r"[a-z0-9_]{0,40}")
_ANSWERS = (
    {"ok": False, "error": "invalid_token", "retry_after": 3},
    {"status": "success", "message": "x", "dedup_key": "y", "errors": []},
    {"message": "You are being rate limited.", "retry_after": 0.3, "global": True, "code": 50035},
    {"result": "success", "msg": ""},
    {"status": "invalid key", "message": "x"},
)
BODIES = st.one_of([spoiled(answer).map(json.dumps).map(str.encode) for answer in _ANSWERS]) | st.sampled_from(
    [
        b"ok",
        b"1",
        b"",
        b"invalid_token",
        b"Webhook message delivery failed with error: x",
        b"[" * 9000,
        b"9" * 9000,
        b"\xff",
    ]
)


class Given(NamedTuple):
    """Which sink is asked, and what it is answered."""

    sink: int
    script: Script


def _variables(port: int) -> dict[str, str]:
    url = f"http://127.0.0.1:{port}"
    return {
        **LOOPBACK,
        "SB_NOTIFICATION_WEBHOOK_URL": f"{url}/{CANARY}",
        "SB_NOTIFICATION_SLACK_URL": f"{url}/{CANARY}",
        "SB_NOTIFICATION_DISCORD_URL": f"{url}/{CANARY}",
        "SB_NOTIFICATION_TEAMS_URL": f"{url}/{CANARY}",
        "SB_NOTIFICATION_PAGERDUTY_ROUTING_KEY": KEY,
        "SB_NOTIFICATION_PAGERDUTY_URL": url,
    }


def configured(variables: dict[str, str]) -> tuple[list[Receiver], NotificationSettings]:
    """Return the receivers that these variables make, the log left out."""
    with environment(variables):
        found = targets(SINKS, [sink.settings.read() for sink in SINKS])
        return [one for one in found if one.sink.name != "noop"], NotificationSettings.read()


async def outcome(receiver: Receiver, transport: NetworkTransport, seconds: float) -> bool:
    """Make an attempt, check how it ended, and return whether it was delivered."""
    delivered = True
    with capture_logs() as logs:
        try:
            await attempt(receiver, FAILED if receiver.sink.name == "pagerduty" else NOTE, transport, seconds)
        except (SinkRejected, SinkUnavailable) as error:
            delivered = False
            assert isinstance(error.fault, Fault)
            assert _CODE.fullmatch(error.code), error.code
            assert CANARY not in str(error)
            wish = getattr(error, "retry_after", None)
            assert wish is None or 0 <= wish <= 3600
            assert error.__cause__ is None or CANARY not in repr(error.__cause__)
    assert [log["event"] for log in logs] == [], logs  # a bug in a sink is told of there
    return delivered


class Asked(NamedTuple):
    """A server, the receivers that lead to it, and what attempts are made with."""

    run: Callable[[Coroutine[Any, Any, None]], None]
    speaker: Speaker
    receivers: list[Receiver]
    transport: NetworkTransport


@contextmanager
def asked(speak: Speak, variables: Callable[[int], dict[str, str]], trusted: Path | None = None) -> Iterator[Asked]:
    """Yield receivers that variables of a port lead to a server; it may be trusted by a file of certificates."""
    bundle = {"SB_NOTIFICATION_CA_BUNDLE": str(trusted)} if trusted else {}
    with loop() as run:
        speaker = Speaker(speak)
        run(speaker.start())
        receivers, settings = configured({**variables(speaker.port), **bundle})
        with environment(bundle):
            transport = NetworkTransport(settings)
        try:
            yield Asked(run, speaker, receivers, transport)
        finally:
            run(transport.close())
            run(speaker.stop())


@contextmanager
def _opened(_servers: Servers) -> Iterator[Holds[Given]]:
    with asked(answer_requests, _variables) as here:

        async def case(given: Given) -> None:
            here.speaker.script = given.script
            receiver = here.receivers[given.sink % len(here.receivers)]
            await outcome(receiver, here.transport, SHORT if given.script.ending == "stay" else HUNG)

        yield lambda given: here.run(case(given))


sink_answers = Target(
    "sink-answers",
    st.builds(Given, st.integers(0, 4), scripts(wholes(BODIES))),
    _opened,
    lambda data: Given(data[0] if data else 0, Script((data[1:],))),
    tuple(
        b"\x00HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (200, len(b), b)
        for b in map(str.encode, map(json.dumps, _ANSWERS))
    ),
    cases=60,
)
