"""A server on the loopback interface that says what it is told to, in pieces; and the event loop that it lives in."""

from __future__ import annotations

import asyncio
import re
import socket
from asyncio.sslproto import SSLProtocol
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeAlias, TypeVar

from hypothesis import strategies as st

from tests.support.waiting import HUNG

T = TypeVar("T")

#: What follows the last piece: the end, a reset, or nothing at all.
ENDINGS = ("close", "reset", "stay")


class Script(NamedTuple):
    """What a connection gets: pieces, each by itself, and an ending."""

    pieces: tuple[bytes, ...]
    ending: str = "close"


def in_pieces(whole: bytes, cuts: list[int]) -> tuple[bytes, ...]:
    """Return the bytes, cut at some places."""
    places = sorted({cut % (len(whole) + 1) for cut in cuts})
    return tuple(whole[begin:end] for begin, end in zip([0, *places], [*places, len(whole)], strict=True))


def scripts(wholes: st.SearchStrategy[bytes], endings: tuple[str, ...] = ENDINGS) -> st.SearchStrategy[Script]:
    """Return scripts that say these bytes, cut anywhere."""
    cuts = st.lists(st.integers(0, 2000), max_size=4)
    return st.builds(lambda whole, at, end: Script(in_pieces(whole, at), end), wholes, cuts, st.sampled_from(endings))


#: How a connection is treated.
Speak: TypeAlias = "Callable[[Speaker, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]"


class Speaker:
    """The server. `speak` is what each connection is treated by."""

    def __init__(self, speak: Speak) -> None:
        self._speak = speak
        self.script = Script(())
        self.port = 0
        self._speaking: set[asyncio.Task[Any] | None] = set()
        self._under_way: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20)
        self.port = self._server.sockets[0].getsockname()[1]

    async def say(self, writer: asyncio.StreamWriter) -> bool:
        """Say the script's pieces, prepare its ending, and return whether the connection stays."""
        script, task = self.script, asyncio.current_task()
        self._speaking.add(task)
        for piece in script.pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if script.ending == "reset":
            reset(writer)
        if script.ending == "stay":
            self._speaking.discard(task)
        return script.ending == "stay"

    async def settled(self) -> None:
        """Wait until all that the script has is said, and has ended if it does: so that what comes late has come."""
        while self._speaking:  # noqa: ASYNC110 - turns of this very loop
            await asyncio.sleep(0)

    async def stop(self) -> None:
        """End every connection, and listen no more."""
        assert self._server is not None
        self._server.close()
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
                await self._speak(self, reader, writer)
        finally:
            writer.transport.abort()
            with suppress(OSError, TypeError):  # Python 3.11's, of a handshake that broke off
                await writer.wait_closed()
            self._under_way.discard(task)
            self._speaking.discard(task)


async def answer_requests(speaker: Speaker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read HTTP requests to their ends, and say the script after each, as long as the connection stays."""
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        await reader.readexactly(int(length[1]) if length else 0)
        if not await speaker.say(writer):
            return


def reset(writer: asyncio.StreamWriter) -> None:
    """Have the end of a connection be a reset."""
    if (connection := writer.get_extra_info("socket")) is not None:  # else it has ended already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


@contextmanager
def loop() -> Iterator[Callable[[Coroutine[Any, Any, T]], T]]:
    """Yield what runs a coroutine to its end, all in one event loop, within the time that a test has.

    What TLS complains of is not shown: it is the server's side that is broken.
    """
    own = asyncio.new_event_loop()

    def complain(about: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("protocol"), SSLProtocol):
            about.default_exception_handler(context)

    own.set_exception_handler(complain)

    def run(work: Coroutine[Any, Any, T]) -> T:
        return own.run_until_complete(asyncio.wait_for(work, HUNG))

    try:
        yield run
    finally:
        own.run_until_complete(own.shutdown_asyncgens())
        own.close()
