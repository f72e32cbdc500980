"""A TCP proxy that adds latency, not a limit of bandwidth, to each round trip, and counts round trips.

    python -m bench.network PORT MILLISECONDS

Prints its own port, then the number of round trips for each line that it reads, until there are no more.
"""

from __future__ import annotations

import queue
import socket
import sys
import threading
import time
from contextlib import suppress


class Proxy:
    """Passes bytes on; those of the server after a delay."""

    def __init__(self, port: int, seconds: float) -> None:
        self._port, self._seconds = port, seconds
        self._guard = threading.Lock()
        self.round_trips = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(("127.0.0.1", self._port))
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            heard = threading.Event()
            heard.set()
            threading.Thread(target=self._ask, args=(client, server, heard), daemon=True).start()
            threading.Thread(target=self._answer, args=(server, client, heard), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket, heard: threading.Event) -> None:
        with suppress(OSError):
            while data := client.recv(65_536):
                if heard.is_set():
                    heard.clear()
                    with self._guard:
                        self.round_trips += 1
                server.sendall(data)
        _shut(server)

    def _answer(self, server: socket.socket, client: socket.socket, heard: threading.Event) -> None:
        waiting: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        if self._seconds:
            threading.Thread(target=self._deliver, args=(waiting, client, heard), daemon=True).start()
        with suppress(OSError):
            while data := server.recv(65_536):
                if self._seconds:
                    waiting.put((time.monotonic() + self._seconds, data))
                else:
                    heard.set()
                    client.sendall(data)
        if self._seconds:
            waiting.put((time.monotonic(), b""))
        else:
            _shut(client)

    def _deliver(
        self, waiting: queue.SimpleQueue[tuple[float, bytes]], client: socket.socket, heard: threading.Event
    ) -> None:
        with suppress(OSError):
            while True:
                due, data = waiting.get()
                time.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    break
                heard.set()
                client.sendall(data)
        _shut(client)


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def main() -> None:
    """Serve until the input ends."""
    proxy = Proxy(int(sys.argv[1]), float(sys.argv[2]) / 1000)
    print(proxy.port, flush=True)
    for _ in sys.stdin:
        print(proxy.round_trips, flush=True)


if __name__ == "__main__":
    main()
