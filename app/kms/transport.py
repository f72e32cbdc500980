"""HTTP to a key service: each request under one deadline, answers bounded, neither of them in a log or an error."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx

from app.core import http
from app.core.errors import Fault, UnwrapFailed
from app.kms.buffers import wipe

#: Seconds that one request may take, and bytes of an answer that are read at most.
DEADLINE, MOST_BODY = 10.0, 64 * 1024


class Reply(NamedTuple):
    """An answer. Its body may hold a key: `content` wipes it."""

    status: int
    body: bytearray

    def content(self) -> Mapping[str, Any]:
        """Return the body as a JSON object, empty when it is none, and wipe it."""
        try:
            parsed = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        finally:
            wipe(self.body)
        return parsed if isinstance(parsed, dict) else {}

    def text(self) -> str:
        """Return the body as text, and wipe it."""
        try:
            return self.body.decode("utf-8", "replace")
        finally:
            wipe(self.body)


def plaintext(service: str, text: object) -> bytearray:
    """Return the bytes of a plaintext that a service answered with, in base64. Raises UnwrapFailed when it is none."""
    try:
        plain = bytearray(base64.b64decode(text, validate=True)) if isinstance(text, str) else bytearray()
    except (binascii.Error, ValueError):
        plain = bytearray()
    if not plain:
        raise UnwrapFailed(f"{service}: the answer has no plaintext")
    return plain


class KeyServiceTransport:
    """HTTP for key services, for one event loop. No proxies, no redirects."""

    def __init__(self, context: ssl.SSLContext | None = None, *, deadline: float = DEADLINE) -> None:
        self._deadline = deadline
        self._context = context
        self._http: httpx.AsyncClient | None = None
        #: Held while a key manager logs in, so that the others that wait use its login.
        self.login = asyncio.Lock()
        #: Services that gave no answer: a hundred endpoints must not each wait for the same one.
        self._unreachable: set[str] = set()

    async def send(self, service: str, method: str, url: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
        """Send once and return the answer, whatever its status. Raises UnwrapFailed when there is none.

        `service` names the service in errors. One that could not be reached is not tried again by this transport,
        which lives as long as a run.
        """
        if service in self._unreachable:
            raise UnwrapFailed(f"{service} cannot be reached, as found before in this run")
        try:
            async with asyncio.timeout(self._deadline):
                request = self._client().build_request(method, url, content=body, headers=dict(headers))
                response = await self._client().send(request, stream=True)
                try:
                    content = await http.read(response, MOST_BODY)
                finally:
                    await response.aclose()
        except (TimeoutError, httpx.HTTPError) as error:
            fault = http.fault(error)
            if fault is not Fault.PROTOCOL:  # which a single broken connection may cause
                self._unreachable.add(service)
            raise UnwrapFailed(f"{service} cannot be reached ({fault})") from None
        except (httpx.InvalidURL, UnicodeError, ValueError):
            raise UnwrapFailed(f"{service}: the request cannot be built; check its address and credentials") from None
        return Reply(response.status_code, content)

    async def close(self) -> None:
        """Close all connections."""
        if self._http is not None:
            await self._http.aclose()

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            self._http = httpx.AsyncClient(
                verify=self._context or http.tls_context(),
                timeout=None,  # noqa: S113 - the deadline above is the only clock
                follow_redirects=False,
                trust_env=False,
                limits=httpx.Limits(max_connections=None),
                headers=http.HEADERS,
            )
        return self._http
