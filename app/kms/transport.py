"""HTTP to a key service: each request under one deadline, answers bounded, neither of them in a log or an error."""

from __future__ import annotations

import asyncio
import base64
import binascii
import ssl
from collections.abc import Mapping
from functools import partial
from ipaddress import ip_address
from typing import Any, NamedTuple

import httpx

from app.core import egress, foreign_json, http
from app.core.dialling import DiallingTransport
from app.core.errors import Fault, UnwrapFailed
from app.kms.buffers import wipe

#: Seconds that one request may take, bytes of an answer that are read at most, and values in it.
DEADLINE, MOST_BODY, MOST_VALUES = 10.0, 64 * 1024, 5000
#: How many requests' time opening a token may take in all: one that waits for credentials as well takes several.
MOST_DEADLINES = 3
#: Where AWS serves credentials, to instances, to tasks and to pods. Nothing else here may dial these.
CREDENTIALS = frozenset(
    map(ip_address, ("169.254.169.254", "fd00:ec2::254", "169.254.170.2", "169.254.170.23", "fd00:ec2::23"))
)


class Reply(NamedTuple):
    """An answer. Its body may hold a key: `content` wipes it."""

    status: int
    body: bytearray

    def content(self) -> Mapping[str, Any]:
        """Return the body as a JSON object, empty when it is none, and wipe it."""
        try:
            parsed = foreign_json.parse(self.body, most=MOST_VALUES)
        except ValueError:
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
    """HTTP for key services, for one event loop. No proxies, no redirects, no cookies."""

    def __init__(self, context: ssl.SSLContext | None = None, *, deadline: float = DEADLINE) -> None:
        """`deadline` is one request's, seconds."""
        self._deadline = deadline
        self.whole = deadline * MOST_DEADLINES
        self._context = context
        #: For the key service itself, and for credentials: one connection must never serve both.
        self._clients: dict[bool, httpx.AsyncClient] = {}
        #: Held while a key manager logs in, so that the others that wait use its login.
        self.login = asyncio.Lock()
        #: Services that gave no answer: a hundred endpoints must not each wait for the same one.
        self._unreachable: set[str] = set()

    async def send(  # noqa: PLR0913 - what a request is
        self,
        service: str,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes = b"",
        *,
        credentials: bool = False,
    ) -> Reply:
        """Send once and return the answer, whatever its status. Raises UnwrapFailed when there is none.

        `service` names the service in errors. One that could not be reached is not tried again by this transport,
        which lives as long as a run. Only a request for `credentials` may go to the addresses in CREDENTIALS.
        """
        if service in self._unreachable:
            raise UnwrapFailed(f"{service} cannot be reached, as found before in this run")
        try:
            async with asyncio.timeout(self._deadline):
                client = self._client(credentials=credentials)
                request = client.build_request(method, url, content=body, headers=dict(headers))
                response = await client.send(request, stream=True)
                try:
                    content = await http.read(response, MOST_BODY)
                finally:
                    await response.aclose()
        except (TimeoutError, httpx.HTTPError) as error:
            fault = http.fault(error)
            if fault is not Fault.PROTOCOL:  # which a single broken connection may cause
                self._unreachable.add(service)
            raise UnwrapFailed(f"{service} cannot be reached ({fault})") from None
        except Exception:  # noqa: BLE001 - an address or a header that no request can be made of, in any class
            raise UnwrapFailed(f"{service}: the request cannot be built; check its address and credentials") from None
        return Reply(response.status_code, content)

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.aclose()

    def _client(self, *, credentials: bool) -> httpx.AsyncClient:
        if credentials not in self._clients:
            resolve = partial(egress.resolve, besides=CREDENTIALS if credentials else ())
            self._context = self._context or http.tls_context()
            self._clients[credentials] = http.client(DiallingTransport(self._context, resolve))
        return self._clients[credentials]
