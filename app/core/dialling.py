"""httpx's transport over a pool that dials judged addresses only: a second look-up could return another one."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import httpcore
import httpx
from httpcore import AnyIOBackend, AsyncNetworkBackend, AsyncNetworkStream

from app.core.errors import AddressBlocked
from app.core.lookup import NameUnknown

#: Returns the addresses of a host and port that may be dialled. Raises NameUnknown or AddressBlocked if there are none.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
#: Seconds until the next address of a host is tried; the last one has the time that the whole request has.
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
            return await self._inner.start_tls(ssl_context, server_hostname, timeout)
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


class DiallingTransport(httpx.AsyncHTTPTransport):
    """Sends over connections to addresses that `resolve` returns. No proxy."""

    def __init__(
        self, context: ssl.SSLContext, resolve: Resolve, *, kept: int | None = None, seconds: float = 5.0
    ) -> None:
        """`kept` is how many connections may be kept open, for so many `seconds`."""
        super().__init__(verify=context, trust_env=False)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=None,  # httpcore keeps the place of a request that was cut: its callers limit theirs
            max_keepalive_connections=kept,
            keepalive_expiry=seconds,
            network_backend=Dialler(resolve),
        )
