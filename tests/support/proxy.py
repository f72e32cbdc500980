"""A TCP proxy that can lose connections in the ways that networks do, and a server of nothing."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self

#: Close at once, with an RST, and throw away what is under way.
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Passes on what it gets, until it is told to keep it.

    `silence` keeps the connections that there are open and passes nothing on any more, as a host without power, a lost
    NAT entry or a stalled proxy do. Connections that come later work, and are led elsewhere by `lead_to`, as by a
    balancer after a failover. `delay` is how many seconds the server's first words are held back.

    `lag`, `deaf` and what `stall`, `cut_after` and `reset` do are a network's other ways, each until it is taken back.
    """

    def __init__(self, port: int, *, delay: float = 0.0) -> None:
        self._target = port
        self._delay = delay
        #: How many connections were accepted.
        self.accepted = 0
        #: How many pieces were late, held back, kept or cut.
        self.hurt = 0
        #: Seconds by which whatever is under way is late, in both directions.
        self.lag = 0.0
        #: Whether connections that come from now on are accepted, and nothing is ever passed on between them.
        self.deaf = False
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
        silenced = self._living()
        for pair in silenced:
            pair.silent.set()
        return len(silenced)

    def end_silence(self) -> None:
        """Reset what has fallen silent, as hosts do by themselves after minutes or hours."""
        for pair in self._open:
            if pair.silent.is_set() and not pair.closed:
                pair.reset()

    def reset(self) -> int:
        """Reset all connections, on both sides; return how many those are."""
        living = self._living()
        for pair in living:
            pair.reset()
        return len(living)

    def stall(self) -> int:
        """Hold back what the server says from now on, until `flow`; return on how many connections."""
        living = self._living()
        for pair in living:
            pair.flowing.clear()
        return len(living)

    def flow(self) -> None:
        """Pass on what was held back."""
        for pair in self._living():
            pair.flowing.set()

    def cut_after(self, size: int) -> int:
        """Reset each connection once the server has said so many bytes more on it; return how many those are."""
        living = self._living()
        for pair in living:
            pair.left = size
        return len(living)

    def _living(self) -> list[_Pair]:
        self._open = [pair for pair in self._open if not pair.closed]
        return [pair for pair in self._open if not pair.silent.is_set()]

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
            pair = _Pair(self, client, server)
            self._open.append(pair)  # before a word is passed on: whoever has had an answer can be hurt
            pair.begin(self._delay)


class _Pair:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self.silent = threading.Event()
        #: Whether what the server says is passed on at once.
        self.flowing = threading.Event()
        self.flowing.set()
        #: How many bytes the server may say until the connection is reset; None for as many as it likes.
        self.left: int | None = None
        self.closed = False
        self._proxy = proxy
        self._ends = (client, server)
        if proxy.deaf:
            self.silent.set()

    def begin(self, delay: float) -> None:
        client, server = self._ends
        for source, sink, wait in ((client, server, 0.0), (server, client, delay)):
            threading.Thread(target=self._pass_on, args=(source, sink, wait), daemon=True).start()

    def close(self) -> None:
        self.closed = True
        self.flowing.set()
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def reset(self) -> None:
        for end in self._ends:
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.closed = True
        self.flowing.set()
        for end in self._ends:
            # Not shut down, which would be an orderly end: but whoever reads it must let go of it before it is closed.
            with suppress(OSError):
                end.shutdown(socket.SHUT_RD)
            end.close()

    def _pass_on(self, source: socket.socket, sink: socket.socket, wait: float) -> None:
        replies = sink is self._ends[0]
        with suppress(OSError):
            while data := source.recv(65_536):
                lag = self._proxy.lag
                self._proxy.hurt += lag > 0
                time.sleep(wait + lag)
                wait = 0.0
                if replies:
                    self._proxy.hurt += not self.flowing.is_set()
                    self.flowing.wait()
                if self.silent.is_set():
                    self._proxy.hurt += 1
                    return  # and nothing is closed: both sides wait
                if replies and self.left is not None:
                    if self.left < len(data):
                        self._proxy.hurt += 1
                        sink.sendall(data[: self.left])
                        self.reset()
                        return
                    self.left -= len(data)
                sink.sendall(data)
        if not self.silent.is_set() and not self.closed:
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
