"""The way to a server outside, on which everything can go wrong that goes wrong between two sockets."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Self

from app.demo.ports import reserved_port

#: What is done to a connection instead of passing it on, until the event is set.
Treat = Callable[[socket.socket, threading.Event], None]
_AT_ONCE = struct.pack("ii", 1, 0)


class Wire:
    """Passes connections on to a port of the loopback interface, unless it is told to do something else with them."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._reserved = reserved_port()
        #: Where it listens: the same port also after it was closed for a while.
        self.port = self._reserved.__enter__()
        self._listener: socket.socket | None = None
        self._treat: Treat | None = None
        #: How many bytes of an answer pass before the connection is reset; None: all of them.
        self._most: int | None = None
        self._healed = threading.Event()
        self._passing: set[socket.socket] = set()
        self._lock = threading.Lock()
        #: Connections that met a fault.
        self.met = 0

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._healed.set()
        self._close()
        self.cut()
        self._reserved.__exit__(None, None, None)

    @property
    def passing(self) -> int:
        """How many ends of connections are being passed on."""
        return len(self._passing)

    def cut(self) -> None:
        """Reset all connections that are being passed on."""
        with self._lock:
            passing = list(self._passing)
        for end in passing:
            _reset(end)

    @contextmanager
    def treating(self, treat: Treat) -> Iterator[None]:
        """Do this to each connection that comes while the body runs; those that there were are reset."""
        self._healed = threading.Event()
        self._treat = treat
        self.cut()
        try:
            yield
        finally:
            self._treat = None
            self._healed.set()

    @contextmanager
    def cutting_answers(self, most: int) -> Iterator[None]:
        """Reset each connection after so many bytes of an answer; the server has had the whole request by then."""
        self._most = most
        try:
            yield
        finally:
            self._most = None

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Refuse all connections while the body runs."""
        self._close()
        self.cut()
        try:
            yield
        finally:
            self._open()

    def _open(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(256)
        self._listener = listener
        threading.Thread(target=self._accept, args=[listener], daemon=True).start()

    def _close(self) -> None:
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                treat = self._treat
                if treat is None:
                    self._pass_on(client)
                else:
                    self.met += 1
                    threading.Thread(target=_treated, args=(treat, client, self._healed), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            client.close()
            return
        with self._lock:
            self._passing |= {client, server}
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self._pump, args=(source, sink, source is server), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if answers and self._most is not None:
                    self.met += 1
                    sink.sendall(data[: self._most])
                    _reset(sink)
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
            with self._lock:
                self._passing.discard(end)


def _treated(treat: Treat, client: socket.socket, healed: threading.Event) -> None:
    with client, suppress(OSError):
        treat(client, healed)


def _reset(end: socket.socket) -> None:
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        end.shutdown(socket.SHUT_RDWR)
        end.close()


def until_it_hangs_up(connection: socket.socket, healed: threading.Event) -> None:
    """Take everything and say nothing: whoever asked waits until its own time is over."""
    del healed
    while connection.recv(65_536):
        pass
