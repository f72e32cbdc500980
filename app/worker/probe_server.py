"""A small HTTP server for probes: one thread, few connections, and for each of them one deadline.

Whoever reaches the port can cost the worker little: a connection has a few seconds from its acceptance to the last byte
of its answer, however it drips; the newest ones push out the oldest, so that many idle ones keep nobody away; a request
is read to the end of its headers, and no further. What takes time is made elsewhere, while this thread answers others.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import selectors
import socket
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from contextlib import suppress
from http import HTTPStatus
from typing import Any, NamedTuple

#: Connections at a time.
MOST_CONNECTIONS = 32
#: Accepted between two looks at those that are open, so that one that has asked is answered before it is pushed out.
_ACCEPTED_A_TURN = 8
#: Seconds that a connection may live.
LIFETIME = 5.0
#: Bytes of a request's line and headers.
MOST_REQUEST = 16 * 1024
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)
#: Seconds to leave an exhausted system alone.
_PAUSE = 0.1


class Request(NamedTuple):
    """What is looked at of a request: the path has no query."""

    method: str
    path: str


class Answer(NamedTuple):
    """What is sent."""

    status: int
    body: bytes
    content_type: str = "application/json"
    #: Further headers.
    headers: Sequence[tuple[str, str]] = ()


class Pending(NamedTuple):
    """An answer that waits for results, but no longer than so many seconds."""

    make: Callable[[], Answer]
    results: Collection[Future[Any]] = ()
    seconds: float = LIFETIME


class _Connection:
    def __init__(self, client: socket.socket) -> None:
        self.socket = client
        self.deadline = time.monotonic() + LIFETIME
        self.request = b""
        self.bodiless = False
        self.pending: Pending | None = None
        #: When an answer is made without the results that are not there yet.
        self.answer_at = self.deadline
        self.unsent = memoryview(b"")

    @property
    def due_at(self) -> float:
        return min(self.deadline, self.answer_at)


class ProbeServer:
    """Answers requests."""

    def __init__(self, listener: socket.socket, answer: Callable[[Request], Pending]) -> None:
        self._listener = listener
        self._answer = answer
        self._connections: list[_Connection] = []  # the oldest first
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = os.pipe()
        for descriptor in (self._woken, self._waker):
            os.set_blocking(descriptor, False)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._woken, selectors.EVENT_READ, lambda: os.read(self._woken, 4096))

    def serve(self) -> None:
        """Serve for ever."""
        while True:
            self.turn(max(0.0, min((one.due_at for one in self._connections), default=1e6) - time.monotonic()))

    def close(self) -> None:
        """Close every connection, but not the listener."""
        for connection in list(self._connections):
            self._close(connection)
        self._selector.close()
        os.close(self._woken)
        os.close(self._waker)

    def turn(self, seconds: float) -> None:
        """Wait so long at most for something to do, and do it."""
        ready = [key.data for key, _ in self._selector.select(min(seconds, 3600.0))]
        for connection in ready:
            if isinstance(connection, _Connection) and connection in self._connections:
                self._write(connection) if connection.unsent else self._read(connection)
        for action in ready:
            if not isinstance(action, _Connection):
                action()
        for connection in list(self._connections):
            self._advance(connection)

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_A_TURN):
            try:
                client, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # no descriptor is left, or the client is gone already
                if self._connections:
                    self._close(self._connections[0])
                else:
                    time.sleep(_PAUSE)
                return
            if len(self._connections) >= MOST_CONNECTIONS:
                self._close(self._connections[0])
            client.setblocking(False)
            connection = _Connection(client)
            self._connections.append(connection)
            self._selector.register(client, selectors.EVENT_READ, connection)

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            return
        connection.request += data
        if b"\r\n\r\n" in connection.request or b"\n\n" in connection.request:
            self._selector.unregister(connection.socket)  # nothing more is read
            connection.pending = self._understand(connection)
            connection.answer_at = min(connection.deadline, time.monotonic() + connection.pending.seconds)
            for result in connection.pending.results:
                result.add_done_callback(self._wake)
        elif len(connection.request) > MOST_REQUEST:
            self._selector.unregister(connection.socket)
            connection.pending = _plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _understand(self, connection: _Connection) -> Pending:
        match connection.request.partition(b"\n")[0].split():
            case [method, target, version] if version.startswith(b"HTTP/1."):
                connection.bodiless = method == b"HEAD"
                path = target.partition(b"?")[0]
                return self._answer(Request(method.decode("latin-1"), path.decode("latin-1")))
        return _plain(HTTPStatus.BAD_REQUEST)

    def _advance(self, connection: _Connection) -> None:
        """Answer one whose results are there or late; end one that is late itself."""
        now, pending = time.monotonic(), connection.pending
        if pending and (now >= connection.answer_at or all(result.done() for result in pending.results)):
            connection.pending, connection.answer_at = None, connection.deadline
            connection.unsent = memoryview(_message(pending.make(), bodiless=connection.bodiless))
            self._selector.register(connection.socket, selectors.EVENT_WRITE, connection)
            self._write(connection)
        elif now >= connection.deadline:
            self._close(connection)

    def _write(self, connection: _Connection) -> None:
        try:
            sent = connection.socket.send(connection.unsent)
        except BlockingIOError:
            return
        except OSError:
            self._close(connection)
            return
        connection.unsent = connection.unsent[sent:]
        if not connection.unsent:
            self._close(connection)

    def _close(self, connection: _Connection) -> None:
        self._connections.remove(connection)
        with suppress(KeyError):  # not while it waits for results
            self._selector.unregister(connection.socket)
        connection.socket.close()

    def _wake(self, _result: Future[Any]) -> None:
        with suppress(BlockingIOError):  # then it has been woken often enough
            os.write(self._waker, b"!")


def listen(host: str, port: int) -> socket.socket:
    """Listen as Go's net.Listen does: any wildcard means both families, a name its IPv4 address if it has one.

    Raises OSError when the address is taken or is not one of this machine.
    """
    if _is_wildcard(host):
        try:
            return socket.create_server(("::", port), family=socket.AF_INET6, backlog=128, dualstack_ipv6=True)
        except (OSError, ValueError) as error:  # ValueError: this system cannot listen on both
            if isinstance(error, OSError) and error.errno not in _NO_IPV6:
                raise
        host = "0.0.0.0"  # noqa: S104 - what was asked for
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    return socket.create_server(address, family=family, backlog=128)


def _is_wildcard(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host or "::")
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_unspecified


def _plain(status: HTTPStatus) -> Pending:
    return Pending(lambda: Answer(status, b'{"status":"%s"}' % status.phrase.lower().encode()))


def _message(answer: Answer, *, bodiless: bool) -> bytes:
    more = "".join(f"{name}: {value}\r\n" for name, value in answer.headers)
    head = (
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\nContent-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\nConnection: close\r\n{more}\r\n"
    )
    return head.encode() + (b"" if bodiless else answer.body)
