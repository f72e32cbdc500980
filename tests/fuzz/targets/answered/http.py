"""HTTP over a real socket: what a server means is what is read; whatever else it says ends its connection alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from hypothesis import strategies as st

from app.core import egress, http
from app.core.dialling import DiallingTransport
from app.core.http11 import Answer
from tests.fuzz.http_answers import Said, answers, wholes
from tests.fuzz.target import Holds, Servers, Target
from tests.fuzz.wire import Script, Speaker, in_pieces, loop, scripts
from tests.support.waiting import HUNG

LIMIT = 64 * 1024
#: What one chunk may be longer than the limit by: what is read of a socket at once.
_ONE_READ = 512 * 1024
#: Seconds until a server that stays silent is given up.
_SHORT = 0.05
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood"
BODIES = st.binary(max_size=300)


async def _speak(speaker: Speaker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        request = await reader.readuntil(b"\r\n\r\n")
        if b"/good" in request.split(b"\r\n", 1)[0]:
            writer.write(GOOD)
            await writer.drain()
        elif not await speaker.say(writer):
            return


async def _ask(client: http.Client, url: str) -> tuple[int, bytes]:
    response = await client.send(client.build_request("GET", url))
    try:
        return response.status_code, bytes(await http.read(response, LIMIT))
    finally:
        await response.aclose()


@contextmanager
def _opened(_servers: Servers) -> Iterator[Holds[Script | Said]]:
    with loop() as run:
        speaker = Speaker(_speak)
        run(speaker.start())
        client = http.Client(DiallingTransport(http.tls_context(pem=None), egress.resolve, kept=4))
        base = f"http://127.0.0.1:{speaker.port}"

        async def case(given: Script | Said) -> None:
            speaker.script = Script(in_pieces(given.raw, list(given.sizes))) if isinstance(given, Said) else given
            try:
                async with asyncio.timeout(_SHORT if speaker.script.ending == "stay" else HUNG):
                    status, body = await _ask(client, f"{base}/")
            except (httpx.HTTPError, TimeoutError):
                assert not isinstance(given, Said) or given.status >= 600
            else:
                assert len(body) <= LIMIT + _ONE_READ
                if isinstance(given, Said):
                    expected = b"" if given.status in (204, 304) else given.body
                    assert (status, body) == (given.status, expected)
            if speaker.script.ending != "stay":
                await speaker.settled()
            assert await _ask(client, f"{base}/good") == (200, b"good")

        try:
            yield lambda given: run(case(given))
        finally:
            run(client.aclose())
            run(speaker.stop())


http_answers = Target(
    "http-answers", scripts(wholes(BODIES)) | answers(BODIES), _opened, lambda data: Script((data,)), (GOOD,), cases=250
)


@contextmanager
def _parsed(_servers: Servers) -> Iterator[Holds[tuple[bytes, list[int]]]]:
    """It must not matter in which pieces an answer comes."""

    def holds(given: tuple[bytes, list[int]]) -> None:
        raw, cuts = given
        assert _outcome((raw,)) == _outcome(in_pieces(raw, cuts))

    yield holds


def _outcome(pieces: tuple[bytes, ...]) -> object:
    answer, body = Answer(), b""
    for piece in pieces:
        try:
            answer.feed(piece)
        except httpx.RemoteProtocolError:
            return "broken", answer.status
        body += answer.take() if answer.chunks else b""
    return answer.status, answer.headers, body, answer.complete


http_pieces = Target(
    "http-pieces",
    st.tuples(wholes(BODIES), st.lists(st.integers(0, 2000), max_size=6)),
    _parsed,
    lambda data: (data[1:], list(data[:1])),
    (b"\x07" + GOOD,),
    cases=300,
)
