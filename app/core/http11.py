"""HTTP/1.1 on one connection: a request, its answer, and whether another request may follow.

Answers are parsed by llhttp, the parser of Node.js. Whatever a server sends that is too much, unasked or no HTTP ends
its connection and nothing else. There is no clock here: the deadline of an exchange is the caller's.
"""

from __future__ import annotations

import asyncio
import re
import select
from collections import deque
from collections.abc import AsyncIterator
from typing import cast

import httpx
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

#: Bytes of a body that wait to be read; and of an answer that are no body: headers, chunks' sizes, trailers. There may
#: be so many of these, and some for each byte of the body, since a chunk may be as small as that.
_MOST_WAITING, _MOST_FRAMING, _FRAMING_A_BYTE = 64 * 1024, 64 * 1024, 16
_INTERIM, _FINAL = 100, 200
# Anything else in a request would make another one of it.
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(rb"[\x21-\x7e]+")
_VALUE = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")
#: Whose answers are framed in ways of their own.
_OTHER_FRAMING = frozenset({"HEAD", "CONNECT"})
#: What tells where a body ends. The length of one may be said more than once, by several headers or in one.
_FRAMING_HEADERS = frozenset({b"content-length", b"transfer-encoding"})
_LENGTH = re.compile(rb"content-length:(.*)\n", re.IGNORECASE)
_BYTES = re.compile(rb"[0-9]{1,18}")


def head(request: httpx.Request) -> bytes:
    """Return what is sent before a request's body. Raises httpx.LocalProtocolError for what cannot be sent so."""
    method, target, headers = request.method.encode("utf-8"), request.url.raw_path, request.headers.raw
    fine = _TOKEN.fullmatch(method) and request.method not in _OTHER_FRAMING and _TARGET.fullmatch(target)
    if not fine or not all(_is_header(*header) for header in headers):
        raise httpx.LocalProtocolError("not a request")
    lines = [b"%s %s HTTP/1.1" % (method, target), *(b"%s: %s" % header for header in headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _is_header(name: bytes, value: bytes) -> bool:
    """Return whether a header says nothing but itself: with another framing, the body would be another request."""
    return bool(_TOKEN.fullmatch(name) and _VALUE.fullmatch(value)) and name.lower() != b"transfer-encoding"


class Answer:
    """An answer as far as it has come. The parser calls the methods."""

    def __init__(self) -> None:
        #: 0 until all headers are there.
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.chunks: deque[bytes] = deque()
        self.complete = False
        #: Whether its connection may be used again, once it is complete.
        self.keep_alive = False
        self._waiting = self._body = self._framing = 0
        self._framed_by: frozenset[bytes] = frozenset()
        #: What has come of the head; by lines it is parsed once the parser has refused a length.
        self._head = b""
        self._by_lines = False
        self._lengths: set[bytes] = set()
        self._parser = self._new_parser()

    @property
    def ends_with_connection(self) -> bool:
        """Whether nothing but the end of the connection tells where the body ends."""
        return self.status >= _FINAL and not self._framed_by

    @property
    def full(self) -> bool:
        """Whether enough of the body waits to be read."""
        return self._waiting > _MOST_WAITING

    def feed(self, data: bytes) -> None:
        """Parse what has come. Raises httpx.RemoteProtocolError; what came before the error is there."""
        before = self._body
        try:
            self._parse(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            if not self.complete:
                raise httpx.RemoteProtocolError("not HTTP/1.1") from error
        self._framing += len(data) - (self._body - before)
        if self._framing > _MOST_FRAMING + _FRAMING_A_BYTE * self._body:
            raise httpx.RemoteProtocolError("too long a header")

    def _new_parser(self) -> HttpResponseParser:
        parser = HttpResponseParser(self)
        parser.set_dangerous_leniencies(
            lenient_chunked_length=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )  # as Go's client
        return parser

    def _parse(self, data: bytes) -> None:
        """Parse what has come. A head with lengths that the parser refuses is read again, by lines."""
        if self.status:
            self._parser.feed_data(data)
            return
        self._head += data
        if not self._by_lines:
            if not b"HTTP/".startswith(self._head.lstrip(b"\r\n")[:5]):
                raise HttpParserError("another protocol")  # RTSP would be taken for HTTP
            try:
                self._parser.feed_data(data)
            except HttpParserError as error:
                if self.status or "Content-Length" not in str(error):
                    raise
                self._by_lines, self._parser = True, self._new_parser()
                self.headers.clear()
        if self._by_lines:
            self._parse_lines()
        if self.status:
            self._head = b""

    def _parse_lines(self) -> None:
        """Parse a head's whole lines, its lengths as one, and what is behind it.

        Where they contradict each other, or are no number, there is a status and no body.
        """
        begin = 0
        while not self.status and (end := self._head.find(b"\n", begin) + 1):
            line, begin = self._head[begin:end], end
            if length := _LENGTH.fullmatch(line):
                self._lengths.update(value.strip(b" \t\r") for value in length[1].split(b","))
            elif self._lengths and not line.strip(b"\r\n"):
                self._end_head()
            else:
                self._parser.feed_data(line)
        self._head = self._head[begin:]
        if self.status:
            self._parser.feed_data(self._head)

    def _end_head(self) -> None:
        length, *others = self._lengths
        self._lengths.clear()
        fine = not others and _BYTES.fullmatch(length)
        self._parser.feed_data(b"Content-Length: %s\r\n\r\n" % length if fine else b"\r\n")
        if self.status and not fine:
            raise HttpParserError("lengths that contradict each other")

    def take(self) -> bytes:
        """Return what has come of the body since it was asked last."""
        taken = b"".join(self.chunks) if len(self.chunks) > 1 else self.chunks[0]
        self.chunks.clear()
        self._waiting = 0
        return taken

    def on_message_begin(self) -> None:
        """Take note of another answer, or of whatever else comes behind this one: nobody has asked for it."""
        self.keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; of a trailer nothing is kept."""
        if not self.status:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Take the status, unless it says that another one will follow."""
        status = self._parser.get_status_code()
        if status < _INTERIM:
            raise ValueError("no status")
        if status >= _FINAL and not self.complete:
            self.status = status
            self._framed_by = _FRAMING_HEADERS.intersection([name.lower() for name, _ in self.headers])

    def on_body(self, data: bytes) -> None:
        """Keep a piece of the body."""
        if not self.complete:
            self.chunks.append(data)
            self._body += len(data)
            self._waiting += len(data)

    def on_message_complete(self) -> None:
        """End the answer, or forget the one that was no final one."""
        if not self.status:
            self.headers.clear()
        elif not self.complete:
            self.complete = True
            # Whoever says twice where the body ends may be understood otherwise by what is between.
            doubtful = self._by_lines or self._framed_by == _FRAMING_HEADERS
            self.keep_alive = self._parser.should_keep_alive() and not doubtful


class Connection(asyncio.Protocol):
    """A connection for one exchange after the other.

    What it raises are httpx's errors, with what it was in their chain. After any of them, and when an exchange was cut,
    it must be closed.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._failure: httpx.TransportError | None = None
        self._change: asyncio.Future[None] | None = None

    # What is asked of it.

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent: not after an end that the loop has not noticed while it rested."""
        if self._transport is None or self._transport.is_closing() or self._failure is not None:
            return False
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket"), select.POLLIN)
        return not poll.poll(0)

    async def exchange(self, request: bytes) -> Answer:
        """Send a request; return the answer as soon as its headers are there."""
        if self._failure is not None:
            raise self._failure
        assert self._transport is not None
        self._answer = answer = Answer()
        self._transport.write(request)
        while not answer.status:
            await self._changed()
        return answer

    async def body(self, answer: Answer) -> AsyncIterator[bytes]:
        """Return an answer's body piece by piece, as it comes."""
        while answer.chunks or not answer.complete:
            if not answer.chunks:
                await self._changed()
                continue
            yield answer.take()
            if self._transport is not None:
                self._transport.resume_reading()

    def abort(self) -> None:
        """Close without a farewell: the end of TLS would be waited for. The loop does it in its next turn."""
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Do the same, and give the loop its turn: it may have none before another run."""
        self.abort()
        await asyncio.sleep(0)

    async def _changed(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._change = asyncio.get_running_loop().create_future()
        try:
            await self._change
        finally:
            self._change = None

    # What the loop tells it.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take what has come, and no more for now if that is enough."""
        assert self._transport is not None
        answer = self._answer
        if answer is None or answer.complete:
            self._fail(httpx.RemoteProtocolError("an answer that nobody asked for"))
            return
        try:
            answer.feed(data)
        except httpx.RemoteProtocolError as error:
            self._fail(error)
            return
        if answer.full and not answer.complete:
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        answer, self._transport = self._answer, None
        if self._failure is None:
            if exc is None and answer is not None and answer.ends_with_connection:
                answer.complete = True
            broken_off = httpx.RemoteProtocolError("broken off")
            self._failure = broken_off if exc is None else httpx.ReadError("connection lost")
            self._failure.__cause__ = exc
        self._wake()

    def _fail(self, failure: httpx.RemoteProtocolError) -> None:
        assert self._transport is not None
        self._failure = failure
        self._transport.abort()
        self._wake()

    def _wake(self) -> None:
        if self._change is not None and not self._change.done():
            self._change.set_result(None)
