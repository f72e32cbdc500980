"""Receivers on the loopback interface: HTTP as told, with and without TLS, and servers that misbehave on the wire."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from tests.support.waiting import HUNG


@dataclass
class Seen:
    """A request that arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """What to answer."""

    status: int = 200
    body: bytes = b"ok"
    headers: Mapping[str, str] = field(default_factory=dict)


class Receiver:
    """An HTTP server that answers what `answer` says, and remembers what it was asked."""

    def __init__(self, answer: Callable[[Seen], Reply] | Reply = Reply(), tls: ssl.SSLContext | None = None) -> None:
        self.seen: list[Seen] = []
        #: Those that were answered with 2xx, as the status is written: from then on the other side may have it.
        self.accepted: list[Seen] = []
        self.answer = answer
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30
            disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", "0"))
                low = {name.lower(): value for name, value in self.headers.items()}
                request = Seen(self.command, self.path, low, self.rfile.read(length))
                receiver.seen.append(request)
                reply = receiver.answer(request) if callable(receiver.answer) else receiver.answer
                self.send_response_only(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                if 200 <= reply.status < 300:
                    receiver.accepted.append(request)
                self.end_headers()
                self.wfile.write(reply.body)

            do_GET = do_PUT = do_POST  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Stay silent."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that hangs up is what some tests are about."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._scheme = "http"
        if tls is not None:
            self._scheme = "https"
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Rude:
    """A TCP server that treats each connection as it is told, until it is closed."""

    def __init__(self, treat: Callable[[socket.socket, threading.Event], None]) -> None:
        self._treat = treat
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._listener.getsockname()[1])
        self.connections = 0
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        """Where it is, for an HTTP client."""
        return f"http://127.0.0.1:{self.port}/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in list(self._open):  # whoever is in the middle of a read or a write comes out of it
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(HUNG)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._open.add(connection)
                thread = threading.Thread(target=self._treated, args=[connection], daemon=True)
                self._threads.append(thread)
                thread.start()

    def _treated(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            self._treat(connection, self._over)
        self._open.discard(connection)


def _drip(connection: socket.socket, over: threading.Event, text: bytes) -> None:
    while not over.wait(0.05):
        connection.sendall(text)


def header_drip(connection: socket.socket, over: threading.Event) -> None:
    """Never come to the end of the headers."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-A: ")
    _drip(connection, over, b"a")


def body_drip(connection: socket.socket, over: threading.Event) -> None:
    """Never come to the end of the body."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    _drip(connection, over, b"a")


def body_that_breaks_off(answer: bytes) -> Callable[[socket.socket, threading.Event], None]:
    """Begin an answer, and hang up before its end."""

    def treat(connection: socket.socket, over: threading.Event) -> None:
        del over
        connection.recv(65536)
        connection.sendall(answer)

    return treat


def banner_drip(connection: socket.socket, over: threading.Event) -> None:
    """Greet as an SMTP server would, without an end."""
    connection.sendall(b"220-")
    _drip(connection, over, b"a")


def greeting(reply: bytes) -> Callable[[socket.socket, threading.Event], None]:
    """Greet with this reply, and wait."""

    def treat(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(reply + b"\r\n")
        over.wait()

    return treat


def silence(connection: socket.socket, over: threading.Event) -> None:
    """Accept and say nothing, until the other side has hung up."""
    del over
    while connection.recv(65536):
        pass


def hang_up(connection: socket.socket, over: threading.Event) -> None:
    """Accept and hang up."""
    del over
    connection.recv(65536)


def reset(connection: socket.socket, over: threading.Event) -> None:
    """Accept and reset the connection."""
    del over
    connection.recv(65536)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


def nonsense(connection: socket.socket, over: threading.Event) -> None:
    """Answer something that is not HTTP."""
    del over
    connection.recv(65536)
    connection.sendall(b"SSH-2.0-nope\r\n\r\n")


def endless(connection: socket.socket, over: threading.Event) -> None:
    """Answer with a body that has no end, as fast as it goes."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    piece = b"10000\r\n" + b"a" * 65536 + b"\r\n"
    while not over.is_set():
        connection.sendall(piece)
