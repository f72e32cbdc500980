"""A TCP proxy that can lose connections in the ways that networks do."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self


class Proxy:
    """Passes on what it gets, until it is told to keep it.

    `silence` keeps the connections that there are open and passes nothing on any more, as a host without power, a lost
    NAT entry or a stalled proxy do. Connections that come later work, and are led elsewhere by `lead_to`, as by a
    balancer after a failover.
    """

    def __init__(self, port: int) -> None:
        self._target = port
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
            self._open.append(_Pair(client, server))


class _Pair:
    """One connection through the proxy."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.silent = threading.Event()
        self.closed = False
        self._ends = (client, server)
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def close(self) -> None:
        self.closed = True
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if self.silent.is_set():
                    return  # and nothing is closed: both sides wait
                sink.sendall(data)
        if not self.silent.is_set():
            self.close()
