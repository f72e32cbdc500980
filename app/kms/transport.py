"""The way to a key service: one request at a time under one deadline, a bounded answer, and no word of either."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx

from app.core import http
from app.core.errors import Fault, UnwrapFailed
from app.kms.envelope import wipe

#: Seconds that one request may take, and bytes of an answer that are read.
DEADLINE, MOST_BODY = 10.0, 64 * 1024


class Reply(NamedTuple):
    """An answer. Its body may hold a key: `content` wipes it."""

    status: int
    body: bytearray

    def content(self) -> Mapping[str, Any]:
        """Give the body as a JSON object, empty when it is none, and overwrite it."""
        try:
            parsed = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        finally:
            wipe(self.body)
        return parsed if isinstance(parsed, dict) else {}

    def text(self) -> str:
        """Give the body as text, and overwrite it."""
        try:
            return self.body.decode("utf-8", "replace")
        finally:
            wipe(self.body)


class KeyServiceTransport:
    """HTTP for key services, for one event loop. No proxies, no redirects."""

    def __init__(self, context: ssl.SSLContext | None = None, *, deadline: float = DEADLINE) -> None:
        self._deadline = deadline
        self._context = context
        self._made: httpx.AsyncClient | None = None
        #: Held while credentials are looked for, so that those who wait find them.
        self.login = asyncio.Lock()
        #: Services that gave no answer: a hundred endpoints shall not wait for the same one in turn.
        self._away: set[str] = set()

    async def send(self, service: str, method: str, url: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
        """Send once and give the answer, whatever its status. Raises UnwrapFailed when there is none.

        A service that could not be reached is not asked again by this wire, which lives as long as a run.
        """
        if service in self._away:
            raise UnwrapFailed(f"{service} cannot be reached, as found before in this run")
        try:
            async with asyncio.timeout(self._deadline):
                request = self._client().build_request(method, url, content=body, headers=dict(headers))
                response = await self._client().send(request, stream=True)
                try:
                    read = await http.read(response, MOST_BODY)
                finally:
                    await response.aclose()
        except (TimeoutError, httpx.HTTPError) as error:
            fault = http.fault(error)
            if fault is not Fault.PROTOCOL:  # which one broken connection may cause
                self._away.add(service)
            raise UnwrapFailed(f"{service} cannot be reached ({fault})") from None
        except (httpx.InvalidURL, UnicodeError, ValueError):
            raise UnwrapFailed(f"{service}: the request cannot be built; check its address and credentials") from None
        return Reply(response.status_code, read)

    async def close(self) -> None:
        """Close what is open."""
        if self._made is not None:
            await self._made.aclose()

    def _client(self) -> httpx.AsyncClient:
        if self._made is None:
            self._made = httpx.AsyncClient(
                verify=self._context or http.tls_context(),
                timeout=None,  # noqa: S113 - the deadline above is the only clock
                follow_redirects=False,
                trust_env=False,
                limits=httpx.Limits(max_connections=None),
                headers=http.HEADERS,
            )
        return self._made
