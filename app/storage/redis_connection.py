"""Connections to Redis of which every wait ends by the deadline of the call that it is for, and a pool of them.

redis-py limits each read and write for itself, and the look-up of a name not at all: a call that has to look up, dial,
log in, select and repeat itself could take many times what each of these may. Here they share one deadline.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from queue import Empty
from typing import Any

import redis
from redis.connection import BlockingConnectionPool, Connection, SSLConnection, UnixDomainSocketConnection

_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Have every wait for Redis in the body end after so many seconds in all, by redis.TimeoutError."""
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def _left(most: float | None) -> float:
    """Return the seconds that a wait may take, at most `most`. Raises redis.TimeoutError when none are left."""
    seconds = min(math.inf if most is None else most, _deadline.get() - time.monotonic())
    if seconds <= 0:
        raise redis.TimeoutError("no time left")
    return seconds


class _Limited:
    """Limits what a connection class of redis-py sends and reads."""

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        self._limit()
        super().send_packed_command(command, check_health)  # type: ignore[misc]

    def read_response(self, *words: Any, **options: Any) -> Any:
        self._limit()
        return super().read_response(*words, **options)  # type: ignore[misc]

    def _limit(self: Any) -> None:
        if self._sock is None:
            return
        try:
            seconds = _left(self.socket_timeout)
        except redis.TimeoutError:
            self.disconnect()  # an answer may still come, and is not the next one's
            raise
        self._sock.settimeout(None if seconds == math.inf else seconds)


class TcpConnection(_Limited, Connection):
    """A connection over TCP."""

    def _connect(self) -> socket.socket:
        """Dial the addresses of the host in their order, each with its share of the time that is left."""
        most = _left(self.socket_connect_timeout)
        places = _resolve(self.host, self.port, self.socket_type, most)
        error: OSError = OSError("no address")
        for number, (family, kind, protocol, _, place) in enumerate(places):
            dialled = socket.socket(family, kind, protocol)
            try:
                dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                dialled.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                dialled.settimeout(_left(most) / (len(places) - number))
                dialled.connect(place)
                dialled.settimeout(_left(self.socket_timeout))
            except OSError as failure:
                dialled.close()
                error = failure
            except redis.TimeoutError:
                dialled.close()
                raise
            else:
                return dialled
        raise error


class TlsConnection(SSLConnection, TcpConnection):
    """A connection over TLS: SSLConnection wraps what the class after it dials."""


class UnixConnection(_Limited, UnixDomainSocketConnection):
    """A connection through a socket of the file system."""


class Pool(BlockingConnectionPool):
    """A pool that waits for a free connection, as go-redis's does, where redis-py's would raise."""

    def drop_idle(self) -> None:
        """Disconnect what nobody uses now, so that it dials anew. Safe beside threads that take and return."""
        idle = []
        with suppress(Empty):
            while (connection := self.pool.get_nowait()) is not None:
                idle.append(connection)
            self.pool.put_nowait(None)
        for connection in idle:
            connection.disconnect()
            self.pool.put_nowait(connection)

    def shut(self) -> None:
        """End every connection, so that whoever waits for an answer on one waits no longer."""
        for connection in list(self._connections):
            with suppress(OSError, TypeError):  # it is not dialled, or gone already
                # Not by a TLS socket's own method, which takes away what its reader is using.
                socket.socket.shutdown(connection._sock, socket.SHUT_RDWR)  # noqa: SLF001 - redis-py has no other way


def _resolve(host: str, port: int, family: int, seconds: float) -> list[Any]:
    """Look up a name; raises redis.TimeoutError after so many seconds, which the system's resolver does not bound."""
    with suppress(socket.gaierror):
        return socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    answer: Future[list[Any]] = Future()

    def look_up() -> None:
        try:
            answer.set_result(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM))
        except Exception as error:  # noqa: BLE001 - raised again by who waits
            answer.set_exception(error)

    threading.Thread(target=look_up, name="look-up", daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError:
        raise redis.TimeoutError("the name was not looked up in time") from None
