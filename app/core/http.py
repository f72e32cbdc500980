"""What every HTTP client here shares: verified TLS, bounded bodies, and errors reduced to a closed set.

Nothing here quotes a library's text, which could contain URLs.
"""

from __future__ import annotations

import socket
import ssl

import httpx

from app.core.errors import Fault

AGENT = "secrets-bridge-worker"
#: Sent with every request: a compressed body could grow without bound when it is unpacked.
HEADERS = {"User-Agent": AGENT, "Accept-Encoding": "identity"}


def tls_context(*, pem: str | None = None) -> ssl.SSLContext:
    """Return a context that verifies servers by the system's authorities, or by those in `pem` alone; TLS 1.2 at least.

    Raises ValueError when `pem` holds no certificate.
    """
    if pem is None:
        context = ssl.create_default_context()
    else:
        try:
            context = ssl.create_default_context(cadata=pem)
        except (ssl.SSLError, ValueError):
            raise ValueError("holds no certificate; accepted: PEM") from None
        if not context.cert_store_stats()["x509"]:
            raise ValueError("holds no certificate; accepted: PEM")
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


async def read(response: httpx.Response, limit: int) -> bytearray:
    """Return the beginning of a body. One that is longer than `limit` bytes is cut, at the end of a chunk behind it."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > limit:
            break
    return body


def fault(error: BaseException) -> Fault:
    """Return the reason why a request got no answer."""
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return Fault.TIMEOUT
    if caused_by(error, ssl.SSLError):
        return Fault.TLS
    if caused_by(error, socket.gaierror):
        return Fault.DNS
    if isinstance(error, httpx.NetworkError):
        return Fault.CONNECT
    return Fault.PROTOCOL


def caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Return whether the error, or one in its chain of causes, is of this kind."""
    for _ in range(10):
        if error is None or isinstance(error, kind):
            return error is not None
        error = error.__cause__ or error.__context__
    return False
