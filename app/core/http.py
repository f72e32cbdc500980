"""What every HTTP client here shares: verified TLS, no memory, bounded bodies, errors reduced to a closed set.

Nothing here quotes a library's text, which could contain URLs.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from functools import lru_cache
from typing import Any, cast

import httpx

from app.core.bounded_input import contents, copied, entries
from app.core.errors import AddressBlocked, Fault
from app.core.lookup import NameUnknown

AGENT = "secrets-bridge-worker"
#: Sent with every request: a compressed body could grow without bound when it is unpacked.
HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": AGENT}
_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_NO_CERTIFICATE = "holds no certificate; accepted: PEM"


def tls_context(*, pem: str | None = None) -> ssl.SSLContext:
    """Return a context that verifies servers by the system's authorities, or by those in `pem` alone; TLS 1.2 at least.

    As in Go, what stands around the certificates in `pem` is not looked at, each of them may be an authority that has
    another one above it, and RFC 5280 is not applied to the letter. Raises ValueError when it holds none.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies, and writes no keys to SSLKEYLOGFILE
    if pem is None:
        _trust_the_system(context)
    else:
        certificates = _CERTIFICATE.findall(pem)
        if not certificates:  # an empty text would stand for the system's authorities
            raise ValueError(_NO_CERTIFICATE)
        try:
            context.load_verify_locations(cadata="\n".join(certificates))
        except Exception:  # noqa: BLE001 - ssl has an error of another class for each kind of odd text
            raise ValueError(_NO_CERTIFICATE) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Python 3.13 changes both.
    context.verify_flags = (context.verify_flags | ssl.VERIFY_X509_PARTIAL_CHAIN) & ~ssl.VERIFY_X509_STRICT
    return context


def _trust_the_system(context: ssl.SSLContext) -> None:
    """Have a context trust the system's authorities, or those of SSL_CERT_FILE and SSL_CERT_DIR.

    What these name OpenSSL would open itself: it waits for a pipe, and opens what lies in a directory in the midst of a
    handshake. What cannot be read has no authorities in it.
    """
    file, directories = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if not file and not directories:
        context.load_default_certs()
        return
    usual = ssl.get_default_verify_paths()
    with suppress(OSError, ValueError), copied(file or usual.openssl_cafile) as path:
        context.load_verify_locations(cafile=path)
    if not directories:
        context.load_verify_locations(capath=usual.openssl_capath)
        return
    for directory in directories.split(":"):
        with suppress(OSError, ValueError):
            for found in contents(entries(directory), passing_over=True):
                for certificate in _CERTIFICATE.findall(found.decode("ascii", errors="replace")):
                    with suppress(ValueError, OSError):
                        context.load_verify_locations(cadata=certificate)


def is_server_name(name: str) -> bool:
    """Return whether a connection can ask for a certificate with this name."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)
    except Exception:  # noqa: BLE001 - ssl and idna have an error of another class for each kind of odd name
        return False
    return True


@lru_cache(maxsize=1)
def system_context() -> ssl.SSLContext:
    """Return the one context with the system's authorities: to load them takes longer than a request."""
    return tls_context()


class Client:
    """Sends requests by a transport, and does nothing else.

    It has no memory and so no cookies, it follows no redirects, and what stands in the environment is not looked at. It
    has no clock either: the deadline of an exchange is the caller's.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        *,
        mounts: Mapping[str, httpx.AsyncBaseTransport] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`mounts` are transports for schemes ("http://") that `transport` is not for."""
        self._transport, self._mounts = transport, mounts or {}
        self._headers = httpx.Headers({**HEADERS, **(headers or {})})

    def build_request(  # noqa: PLR0913 - what httpx has
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | Mapping[bytes, bytes] | None = None,
        extensions: Mapping[str, Any] | None = None,
    ) -> httpx.Request:
        """Return a request with the headers that all have, and a login if there is one in the URL."""
        merged = self._headers.copy()
        merged.update(headers)
        request = httpx.Request(
            method, url, params=params, content=content, headers=merged, extensions=dict(extensions or {})
        )
        if request.url.userinfo:
            request = next(httpx.BasicAuth(request.url.username, request.url.password).auth_flow(request))
        return request

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Return the answer, its body still to be read. Raises httpx.HTTPError."""
        transport = self._mounts.get(f"{request.url.scheme}://", self._transport)
        return await transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Close all connections."""
        for transport in {self._transport, *self._mounts.values()}:
            await transport.aclose()


async def read(response: httpx.Response, limit: int, *, patience: float | None = None) -> bytearray:
    """Return the beginning of a body. One that is longer than `limit` bytes is cut, at the end of a chunk behind it.

    With `patience`, in seconds, it is what came in that time, or until the answer broke off.
    """
    body = bytearray()
    raw = cast("AsyncGenerator[bytes]", aiter(cast("httpx.AsyncByteStream", response.stream)))
    with suppress(*(() if patience is None else (TimeoutError, httpx.HTTPError))):
        # Left in the middle, a generator would end in some later turn of the loop.
        async with asyncio.timeout(patience), aclosing(raw) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > limit:
                    break
    return body


_CAUSES: dict[type[BaseException], Fault] = {
    ssl.SSLError: Fault.TLS,
    AddressBlocked: Fault.BLOCKED_ADDRESS,
    NameUnknown: Fault.DNS,
}


def fault(error: BaseException) -> Fault:
    """Return the reason why a request got no answer."""
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return Fault.TIMEOUT
    if isinstance(error, httpx.ProxyError):  # whatever kept the proxy from making a tunnel
        return Fault.PROXY
    for kind, fault in _CAUSES.items():
        if caused_by(error, kind):
            return fault
    return Fault.CONNECT if isinstance(error, httpx.NetworkError) else Fault.PROTOCOL


def reason(error: BaseException) -> str:
    """Return the same in words, and the status of a proxy that refuses; for those who can read no code beside it."""
    return f"{fault(error)} {proxy_status(error)}".rstrip()


def proxy_status(error: BaseException) -> str:
    """Return the status by which a proxy refused to make a tunnel; empty for any other error."""
    text = str(error) if isinstance(error, httpx.ProxyError) else ""
    return text if re.fullmatch("[0-9]{3}", text) else ""


def caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Return whether the error, or one in its chain of causes, is of this kind."""
    for _ in range(10):
        if error is None or isinstance(error, kind):
            return error is not None
        error = error.__cause__ or error.__context__
    return False
