"""The mail sink, over real sockets: whatever a server says, in the clear or in TLS, an attempt ends in a known word."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from ssl import SSLContext
from typing import Any, NamedTuple

from hypothesis import strategies as st

from tests.fuzz.target import Holds, Servers, Target
from tests.fuzz.targets.answered.sinks import SHORT, asked, configured, outcome
from tests.fuzz.wire import Script, Speaker, reset
from tests.support.outcome import LOOPBACK
from tests.support.tls import Authority


class Mail(NamedTuple):
    """What an SMTP server says to each line in turn, whether it wants a login, and whether it then stays."""

    replies: Sequence[bytes]
    login: bool
    ending: str


_REPLY = st.sampled_from(
    [
        *(
            b"220 hi\r\n",
            b"250 ok\r\n",
            b"354 go on\r\n",
            b"250-a\r\n250-AUTH PLAIN LOGIN CRAM-MD5\r\n250 SIZE 1\r\n",
            b"334 \r\n",
        ),
        *(
            b"250-AUTH CRAM-MD5\r\n250 X\r\n",
            b"334 !!!\r\n",
            b"334 4\r\n",
            b"235 fine\r\n",
            b"421 bye\r\n",
            b"451 later\r\n",
            b"535 no\r\n",
        ),
        *(
            b"550 no\r\n",
            b"552 big\r\n",
            b"999 odd\r\n",
            b"-1 odd\r\n",
            b"2\r\n",
            b"25\r\n",
            b"abc\r\n",
            b"\r\n",
            b"250\xff\r\n",
            b"250 \xe4\r\n",
        ),
        *(
            b"250-x\r\n" * 20_000,
            b"250 " + b"a" * 100_000 + b"\r\n",
            b"250-x\r\n251 y\r\n",
            b"\x00\r\n",
            b"250 ok",
            b"250 a\n",
            b"250 a\r",
        ),
        *(
            b"250-AUTH LOGIN\r\n250 AUTH\r\n",
            b"250-AUTH=PLAIN\r\n250 8BITMIME\r\n",
            b"250-SMTPUTF8\r\n250 STARTTLS\r\n",
            b"250-\xff\r\n250 \r\n",
        ),
        b"",
    ]
)
_GOOD = (
    b"220 hi\r\n",
    b"250-x\r\n250 AUTH CRAM-MD5\r\n",
    b"334 4pyT\r\n",
    b"235 ok\r\n",
    b"250 ok\r\n",
    b"250 ok\r\n",
    b"354 go\r\n",
    b"250 ok\r\n",
)


def _changed(good: Sequence[bytes], changes: Sequence[tuple[int, bytes]]) -> tuple[bytes, ...]:
    """Return good replies with others in the place of some."""
    said = list(good)
    for at, reply in changes:
        said[at] = reply
    return tuple(said)


_any = _REPLY | st.binary(max_size=20) | st.binary(max_size=20).map(lambda text: text + b"\r\n")
_said = st.lists(_any, max_size=9).map(tuple)
_misplaced = st.lists(st.tuples(st.integers(0, len(_GOOD) - 1), _any), max_size=2)
MAILS = st.builds(
    Mail,
    _said | _misplaced.map(lambda changes: _changed(_GOOD, changes)),
    st.booleans(),
    st.sampled_from(["close", "reset"]),
)


def _variables(port: int, **more: str) -> dict[str, str]:
    own = {"HOST": "127.0.0.1", "PORT": str(port), "FROM": "w@example.org", "TO": "o@example.org", **more}
    return {**LOOPBACK, **{f"SB_NOTIFICATION_EMAIL_{name}": value for name, value in own.items()}}


#: In the place of a reply: the server's side of a TLS handshake.
_HANDSHAKE = b"<handshake>"


class _Server:
    """Says its script, in TLS from a handshake on, and notes whether it was given a mail there."""

    def __init__(self, context: SSLContext | None = None) -> None:
        self._context = context
        self.given_in_tls = False

    async def __call__(self, speaker: Speaker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pieces, secured, self.given_in_tls = speaker.script.pieces, False, False
        for piece, following in zip(pieces, (*pieces[1:], b""), strict=True):
            if piece == _HANDSHAKE and self._context:
                try:
                    await writer.start_tls(self._context)
                except TypeError:  # Python 3.11's, where a handshake breaks off
                    return
                secured = True
                continue
            writer.write(piece)
            await writer.drain()
            if piece.startswith(b"354"):
                await reader.readuntil(b"\r\n.\r\n")
                self.given_in_tls = secured
            elif piece and following != _HANDSHAKE:
                await reader.readline()
        if speaker.script.ending == "reset":
            reset(writer)


@contextmanager
def _mail_opened(_servers: Servers) -> Iterator[Holds[Mail]]:
    variables = partial(_variables, TLS="none", ALLOW_PLAINTEXT="true")
    with asked(_Server(), variables) as here:
        (with_login,), _ = configured(variables(here.speaker.port))
        settings: Any = with_login.settings
        object.__setattr__(settings, "username", "worker")  # which they refuse without TLS; the server here has none

        async def case(given: Mail) -> None:
            here.speaker.script = Script(tuple(given.replies), given.ending)
            await outcome(with_login if given.login else here.receivers[0], here.transport, SHORT)

        yield lambda given: here.run(case(given))


smtp_answers = Target(
    "smtp-answers",
    MAILS,
    _mail_opened,
    lambda data: Mail(tuple(line + b"\r\n" for line in data[1:].split(b"\r\n")), bool(data[:1] > b"\x7f"), "close"),
    (b"\x80" + b"".join(_GOOD), b"\x00220 x\r\n250 x\r\n250 x\r\n250 x\r\n354 x\r\n250 x\r\n"),
    cases=60,
)


_GOOD_BY_STARTTLS = (
    *(b"220 hi\r\n", b"250-x\r\n250 STARTTLS\r\n", b"220 go\r\n", _HANDSHAKE),
    *(b"250-x\r\n250 SIZE 1\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n", b"250 ok\r\n"),
)
_IN_TLS_OR_NOT = (
    _any
    | st.just(_HANDSHAKE)
    | st.sampled_from(
        [
            b"220 go\r\n250 put in before TLS\r\n",
            b"220 go\r\n" + b"250 ok\r\n" * 3 + b"354 go\r\n250 ok\r\n",
            b"454 4.7.0 TLS not available\r\n",
            b"\x15\x03\x03\x00\x02\x02\x28",  # an alert: handshake failure
            b"\x16\x03\x03\xff\xff" + b"\x00" * 99,
        ]
    )
)
SECURED = st.builds(
    lambda changes, ending: Script(_changed(_GOOD_BY_STARTTLS, changes), ending),
    st.lists(st.tuples(st.integers(0, len(_GOOD_BY_STARTTLS) - 1), _IN_TLS_OR_NOT), max_size=3),
    st.sampled_from(["close", "reset"]),
)


@contextmanager
def _secured_opened(_servers: Servers) -> Iterator[Holds[Script]]:
    with tempfile.TemporaryDirectory() as directory:
        authority = Authority(Path(directory))
        server = _Server(authority.server())
        with asked(server, _variables, trusted=authority.file) as here:

            async def case(script: Script) -> None:
                here.speaker.script = script
                if await outcome(here.receivers[0], here.transport, SHORT):
                    assert server.given_in_tls, "delivered, and nobody was given it in TLS"

            yield lambda script: here.run(case(script))


#: Servers that go on in the clear: one that was asked for TLS, and one that would take mail without being asked.
_STRIPPED = tuple(piece for piece in _GOOD_BY_STARTTLS if piece != _HANDSHAKE)
_UNASKED = (*_GOOD_BY_STARTTLS[:2], *_GOOD_BY_STARTTLS[-4:])
starttls_answers = Target(
    "starttls-answers",
    SECURED,
    _secured_opened,
    found=(Script(_GOOD_BY_STARTTLS), Script(_STRIPPED), Script(_UNASKED)),
    cases=60,
)
