"""httpx's transport: it dials judged addresses only, since a second look-up could return another one.

Where a proxy is set, https:// goes through it: tunnels are connections like all others, and kept like them.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, NamedTuple, Protocol

import httpx

from app.core import egress, http, http11
from app.core.egress import EgressSettings, Proxy
from app.core.errors import AddressBlocked
from app.core.http11 import Answer, Connection
from app.core.lookup import NameUnknown


class Resolve(Protocol):
    """Looks up and judges a host, as `app.core.egress.resolve` does."""

    def __call__(self, host: str, port: int, *, every: bool = False) -> Awaitable[Sequence[str]]:
        """Return the addresses that may be dialled. Raises NameUnknown or AddressBlocked if there are none.

        With `every` none of the host's addresses may be a closed one.
        """
        ...


#: Seconds until the next address of a host is tried, the last one has the time that the whole request has; and how long
#: a name is looked up that a proxy will look up itself.
_PATIENCE = 2.0
_PORTS = {"http": 80, "https": 443}
_TUNNEL = range(200, 300)


async def dial(addresses: Sequence[str], port: int) -> socket.socket:
    """Return a socket that is connected to the first address that answers. Raises what the last one does, OSError."""
    *others, last = addresses
    for address in others:
        with suppress(OSError):
            async with asyncio.timeout(_PATIENCE):
                return await _dialled(address, port)
    return await _dialled(last, port)


async def _dialled(address: str, port: int) -> socket.socket:
    connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(connection, (address, port))
    except BaseException:
        connection.close()
        raise
    return connection


class DiallingTransport(httpx.AsyncBaseTransport):
    """Sends over connections to addresses that `resolve` returns; https:// through the proxy that is set, if one is.

    A connection serves one loop, one host and one name that its certificate must have.
    """

    def __init__(  # noqa: PLR0913 - who may be reached, and what is kept
        self,
        context: ssl.SSLContext,
        resolve: Resolve,
        *,
        kept: int | None = None,
        seconds: float = 5.0,
        proxied: bool = True,
        unix_socket: str = "",
    ) -> None:
        """`kept` is how many connections may be kept open, for so many `seconds`.

        Not `proxied` is what no proxy may lead to: this machine's own services, such as those for credentials. With a
        `unix_socket` all requests go there.
        """
        context.set_alpn_protocols(["http/1.1"])
        self._context, self._resolve, self._unix_socket = context, resolve, unix_socket
        self._proxy = EgressSettings.read().proxy if proxied and not unix_socket else None
        self._kept, self._seconds = kept, seconds
        #: Those that are kept open, the oldest first.
        self._idle: list[_Idle] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        target = _target(request)
        content = http11.head(request) + await request.aread()
        try:
            connection = self._take(target) or await self._connect(target)
        except BaseException:
            await asyncio.sleep(0)  # a loop that rests closes nothing
            raise
        try:
            answer = await connection.exchange(content)
        except BaseException:
            await connection.close()
            raise
        body = _Body(connection, answer, partial(self._give_back, target, connection))
        return httpx.Response(answer.status, headers=answer.headers, stream=body)

    async def aclose(self) -> None:
        """Close the connections that are kept, and keep none from now on."""
        self._kept = 0
        while self._idle:
            await self._idle.pop().connection.close()

    def _take(self, target: _Target) -> Connection | None:
        """Return a connection that is kept; none that has been closed, by us or by the other side."""
        now = time.monotonic()
        while self._idle and self._idle[0].until <= now:
            self._idle.pop(0).connection.abort()
        for idle in self._idle[::-1]:
            if idle.target == target:
                self._idle.remove(idle)
                if idle.connection.reusable:
                    return idle.connection
                idle.connection.abort()
        return None

    async def _give_back(self, target: _Target, connection: Connection) -> None:
        self._idle.append(_Idle(target, connection, time.monotonic() + self._seconds))
        if self._kept is not None and len(self._idle) > self._kept:
            await self._idle.pop(0).connection.close()

    async def _connect(self, target: _Target) -> Connection:
        """Connect. Raises httpx.ConnectError, or ProxyError when the proxy makes no tunnel, with what it was."""
        loop, host, port = asyncio.get_running_loop(), target.host, target.port
        tls: dict[str, Any] = {"ssl": self._context, "server_hostname": target.name} if target.name else {}
        try:
            if self._unix_socket:
                self._check(target.name)
                return (await loop.create_unix_connection(Connection, self._unix_socket, **tls))[1]
            if self._proxy and target.name and not self._proxy.spares(host):
                await self._judge(host, port)
                self._check(target.name)
                return await _secured(await _tunnel(self._proxy, host, port), self._context, target.name)
            addresses = await self._resolve(host, port)
            self._check(target.name)
            connected = await dial(addresses, port)
            return (await loop.create_connection(Connection, sock=connected, **tls))[1]
        except (NameUnknown, AddressBlocked, OSError) as error:
            raise httpx.ConnectError("not connected") from error

    def _check(self, name: str) -> None:
        """Raise, an error of any class, for a name that no certificate can have: before there is a socket to close."""
        if name:
            self._context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)

    async def _judge(self, host: str, port: int) -> None:
        """Raise AddressBlocked for a host that stands for a closed address, here or maybe for the proxy."""
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._resolve(host, port, every=True)
        except (NameUnknown, TimeoutError):  # it may well be that only the proxy can look names up
            if not egress.is_name(host):
                raise AddressBlocked from None


class _Target(NamedTuple):
    """Where to, and the name that a certificate must have; empty without TLS."""

    host: str
    port: int
    name: str


class _Idle(NamedTuple):
    target: _Target
    connection: Connection
    until: float


class _Body(httpx.AsyncByteStream):
    """The body of an answer, as it comes."""

    def __init__(
        self, connection: Connection, answer: Answer, give_back: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        self._connection, self._answer, self._give_back = connection, answer, give_back
        self._closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._connection.body(self._answer)

    async def aclose(self) -> None:
        """Keep the connection for the next request, if it can take one; else close it."""
        if self._closed:
            return
        self._closed = True
        if self._answer.complete and self._answer.keep_alive:
            await self._give_back()
        else:
            await self._connection.close()


def _target(request: httpx.Request) -> _Target:
    url = request.url
    if url.scheme not in _PORTS or not url.host:
        raise httpx.UnsupportedProtocol("not a URL of HTTP")
    host = url.raw_host.decode("ascii")
    name = request.extensions.get("sni_hostname") or host.rstrip(".")
    return _Target(host, url.port or _PORTS[url.scheme], name if url.scheme == "https" else "")


async def _secured(tunnel: asyncio.Transport, context: ssl.SSLContext, name: str) -> Connection:
    """Begin TLS in a tunnel."""
    connection = Connection()
    try:
        transport = await asyncio.get_running_loop().start_tls(tunnel, connection, context, server_hostname=name)
    except BaseException:
        tunnel.abort()
        raise
    if transport is None:  # it was closed meanwhile
        raise ConnectionResetError
    connection.connection_made(transport)
    return connection


class _ProxyAnswer(asyncio.Protocol):
    """Waits for the status of a proxy's answer; 0 if it is no HTTP, or the proxy hangs up before."""

    def __init__(self) -> None:
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._answer = Answer()

    def data_received(self, data: bytes) -> None:
        if self.status.done():
            return
        try:
            self._answer.feed(data)
        except httpx.RemoteProtocolError:
            self.status.set_result(0 if self._answer.status in _TUNNEL else self._answer.status)
        else:
            if self._answer.status:
                self.status.set_result(self._answer.status)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if not self.status.done():
            self.status.set_result(0)


async def _tunnel(proxy: Proxy, host: str, port: int) -> asyncio.Transport:
    """Have a proxy dial. Raises httpx.ProxyError, with the status if there was one.

    Its own address is judged too, but it may be private, and by TLS it is verified by the system's authorities.
    """
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    login = f"Proxy-Authorization: {proxy.login}\r\n" if proxy.login else ""
    request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: {http.AGENT}\r\n{login}\r\n"
    more: dict[str, Any] = {}
    if proxy.scheme == "https":
        more = {"ssl": http.system_context(), "server_hostname": proxy.host}
    try:
        connection = await dial(await egress.resolve(proxy.host, proxy.port), proxy.port)
        loop = asyncio.get_running_loop()
        transport, answer = await loop.create_connection(_ProxyAnswer, sock=connection, **more)
    except (NameUnknown, AddressBlocked, OSError) as error:
        raise httpx.ProxyError("") from error
    with ExitStack() as unless_done:
        unless_done.callback(transport.abort)
        transport.write(request.encode())
        status = await answer.status
        if status not in _TUNNEL:
            raise httpx.ProxyError(str(status or ""))
        unless_done.pop_all()
    return transport
