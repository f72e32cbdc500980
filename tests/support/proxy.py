"""A TCP proxy that can lose connections in the ways that networks do, and a server of nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self


class Proxy:
    """Passes on what it gets, until it is told to keep it.

    `silence` keeps the connections that there are open and passes nothing on any more, as a host without power, a lost
    NAT entry or a stalled proxy do. Connections that come later work, and are led elsewhere by `lead_to`, as by a
    balancer after a failover. `delay` is how many seconds the server's first words are held back.
    """

    def __init__(self, port: int, *, delay: float = 0.0) -> None:
        self._target = port
        self._delay = delay
        #: How many connections were accepted.
        self.accepted = 0
        self._open: list[_Pair] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        for pair in self._open:
            pair.close()

    def lead_to(self, port: int) -> None:
        """Lead new connections to this port; those that there are stay where they are."""
        self._target = port

    def silence(self) -> int:
        """Pass nothing on between those who are connected now; return how many connections that are."""
        silenced = [pair for pair in self._open if not (pair.closed or pair.silent.is_set())]
        for pair in silenced:
            pair.silent.set()
        return len(silenced)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            self.accepted += 1
            self._open.append(_Pair(client, server, self._delay))


class _Pair:
    """One connection through the proxy."""

    def __init__(self, client: socket.socket, server: socket.socket, delay: float) -> None:
        self.silent = threading.Event()
        self.closed = False
        self._ends = (client, server)
        for source, sink, wait in ((client, server, 0.0), (server, client, delay)):
            threading.Thread(target=self._pass_on, args=(source, sink, wait), daemon=True).start()

    def close(self) -> None:
        self.closed = True
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _pass_on(self, source: socket.socket, sink: socket.socket, wait: float) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                time.sleep(wait)
                wait = 0.0
                if self.silent.is_set():
                    return  # and nothing is closed: both sides wait
                sink.sendall(data)
        if not self.silent.is_set():
            self.close()


@contextmanager
def answering(words: bytes | None) -> Iterator[int]:
    """Listen, and send this to whoever comes; None: say nothing and close nothing."""
    kept: list[socket.socket] = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                kept.append(client)
                if words is not None:
                    client.recv(4096)
                    client.sendall(words)
                    client.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for client in kept:
                client.close()
