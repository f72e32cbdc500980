"""httpx's transport over a pool that dials judged addresses only: a second look-up could return another one.

Where a proxy is set, https:// goes through it: the pool is the same, and its connections are tunnels. httpcore's own
pool for proxies would verify the host of the URL where another name is to be verified (`sni_hostname`).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

import httpcore
import httpx
from httpcore import AnyIOBackend, AsyncNetworkBackend, AsyncNetworkStream

from app.core import egress, http
from app.core.egress import EgressSettings, Proxy
from app.core.errors import AddressBlocked
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

T = TypeVar("T")


async def first_to_answer(addresses: Sequence[str], connect: Callable[[str], Awaitable[T]]) -> T:
    """Connect to the first of a host's addresses that answers. Raises what `connect` does at the last one."""
    *others, last = addresses
    for address in others:
        with suppress(OSError, httpcore.ConnectError, httpcore.ConnectTimeout):
            async with asyncio.timeout(_PATIENCE):
                return await connect(address)
    return await connect(last)


class _Stream(AsyncNetworkStream):
    """A connection that is closed when its TLS handshake is cut, for then nobody else knows of it yet."""

    def __init__(self, inner: AsyncNetworkStream) -> None:
        self.read, self.write, self.aclose = inner.read, inner.write, inner.aclose  # type: ignore[method-assign]
        self.get_extra_info = inner.get_extra_info  # type: ignore[method-assign]
        self._inner = inner

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface's
    ) -> AsyncNetworkStream:
        try:
            return _Stream(await self._inner.start_tls(ssl_context, server_hostname, timeout))
        except BaseException:
            await self._inner.aclose()
            raise


class Dialler(AsyncNetworkBackend):
    """Dials the very addresses that it is told for a host, one after the other."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._inner = AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> AsyncNetworkStream:
        """Connect to the first address that answers. Raises httpcore's errors, with what it was in their chain."""
        try:
            addresses = await self._resolve(host, port)
        except (NameUnknown, AddressBlocked) as error:
            raise httpcore.ConnectError from error
        return _Stream(
            await first_to_answer(
                addresses,
                lambda address: self._inner.connect_tcp(address, port, timeout, local_address, socket_options),
            )
        )

    async def connect_unix_socket(self, *_: Any, **__: Any) -> AsyncNetworkStream:
        """Refuse."""
        raise httpcore.ConnectError from AddressBlocked()

    async def sleep(self, seconds: float) -> None:
        """Sleep."""
        await asyncio.sleep(seconds)


class _Tunneller(Dialler):
    """Has a proxy dial. What its host stands for here is judged too, as far as it is known here."""

    def __init__(self, resolve: Resolve, proxy: Proxy) -> None:
        super().__init__(resolve)
        self._proxy = proxy

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> AsyncNetworkStream:
        """Return a tunnel. Raises httpcore.ProxyError when the proxy makes none, ConnectError for a closed address."""
        del timeout, local_address, socket_options
        try:
            await self._judge(host, port)
        except AddressBlocked as error:
            raise httpcore.ConnectError from error
        async with AsyncExitStack() as unless_done:
            connection = self._connection()
            unless_done.push_async_callback(connection.aclose)
            try:
                response = await connection.handle_async_request(self._request(host, port))
            except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
                raise httpcore.ProxyError from error
            if not HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
                raise httpcore.ProxyError(str(response.status))
            unless_done.pop_all()
        return _Stream(response.extensions["network_stream"])

    async def _judge(self, host: str, port: int) -> None:
        """Raise AddressBlocked for a host that stands for a closed address, here or maybe for the proxy."""
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._resolve(host, port, every=True)
        except (NameUnknown, TimeoutError):  # it may well be that only the proxy can look names up
            if not egress.is_name(host):
                raise AddressBlocked from None

    def _connection(self) -> httpcore.AsyncHTTPConnection:
        """Return a connection to the proxy, not yet made: it may be private, and by TLS it is verified."""
        context = http.system_context() if self._proxy.scheme == "https" else None
        origin = httpcore.Origin(self._proxy.scheme.encode(), self._proxy.host.encode(), self._proxy.port)
        return httpcore.AsyncHTTPConnection(origin, ssl_context=context, network_backend=Dialler(egress.resolve))

    def _request(self, host: str, port: int) -> httpcore.Request:
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        login = [("Proxy-Authorization", self._proxy.login)] if self._proxy.login else []
        headers = [("Host", target), ("User-Agent", http.AGENT), *login]
        url = httpcore.URL(scheme=self._proxy.scheme, host=self._proxy.host, port=self._proxy.port, target=target)
        return httpcore.Request("CONNECT", url, headers=headers)


class DiallingTransport(httpx.AsyncBaseTransport):
    """Sends over connections to addresses that `resolve` returns; https:// through the proxy that is set, if one is."""

    def __init__(
        self,
        context: ssl.SSLContext,
        resolve: Resolve,
        *,
        kept: int | None = None,
        seconds: float = 5.0,
        proxied: bool = True,
    ) -> None:
        """`kept` is how many connections may be kept open, for so many `seconds`.

        Not `proxied` is what no proxy may lead to: this machine's own services, such as those for credentials.
        """
        self._proxy = EgressSettings.read().proxy if proxied else None
        self._direct = _Pool(context, Dialler(resolve), kept, seconds)
        self._tunnels = _Pool(context, _Tunneller(resolve, self._proxy), kept, seconds) if self._proxy else self._direct

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        url = request.url
        direct = self._proxy is None or url.scheme != "https" or self._proxy.spares(url.host)
        return await (self._direct if direct else self._tunnels).handle_async_request(request)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._direct.aclose()
        await self._tunnels.aclose()


class _Pool(httpx.AsyncHTTPTransport):
    """Connections that a backend of ours makes."""

    def __init__(self, context: ssl.SSLContext, backend: AsyncNetworkBackend, kept: int | None, seconds: float) -> None:
        super().__init__(verify=context, trust_env=False)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=None,  # httpcore keeps the place of a request that was cut: its callers limit theirs
            max_keepalive_connections=kept,
            keepalive_expiry=seconds,
            network_backend=backend,
        )
