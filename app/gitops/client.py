"""Reads applications from one ArgoCD. The transport lets nothing out but a GET of the two paths.

`refresh` is never sent: it is a GET that writes. ArgoCD answers 403 for an application that is not there unless it is
told the project; so a 403 is asked about once more with what is known, and what worked without stays as it is.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from app.core import bounded_input, egress, http
from app.core.backoff import retry_after
from app.core.dialling import DiallingTransport
from app.gitops import documents
from app.gitops.documents import Application, WrongShape
from app.gitops.model import PollOutcome

#: Bytes of an answer, and values in it: the resource tree of an application with some nine thousand resources. Parsed,
#: it takes 24 MiB of the 256 that a container has; made of the smallest values, less than 50.
MOST_BODY, MOST_VALUES = 4 * 1024 * 1024, 250_000
#: Characters of an application's name, its namespace before it: twice what Kubernetes allows.
MOST_NAME = 640
_PATH = re.compile(r"/api/v1/applications/[^/]+(/resource-tree)?")
_PARAMETERS = frozenset({"project", "appNamespace"})


class PollFailed(Exception):
    """A request brought nothing. `text` names the path and so a row's content: it is for that row alone, never a log.

    `retry_after` is the server's wish in seconds.
    """

    def __init__(self, outcome: PollOutcome, text: str, *, retry_after: float | None = None) -> None:
        super().__init__(outcome.value)
        self.outcome, self.text, self.retry_after = outcome, text, retry_after


class WrongEndpoint(ValueError):
    """An endpoint's row describes no ArgoCD that can be asked; the text names the column and no value."""


class NotAllowed(Exception):
    """A request that must never leave this process."""


class ReadOnly(httpx.AsyncBaseTransport):
    """Refuses whatever is not a GET of an application or its resource tree, before anything is sent."""

    def __init__(self, prefix: str, inner: httpx.AsyncBaseTransport) -> None:
        self._prefix = prefix
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request that is allowed."""
        path = request.url.raw_path.decode("ascii").partition("?")[0]
        own = path.removeprefix(self._prefix) if path.startswith(self._prefix) else ""
        if request.method != "GET" or not _PATH.fullmatch(own) or not _PARAMETERS.issuperset(request.url.params):
            raise NotAllowed
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


class Client:
    """One ArgoCD, for one event loop. The token is the caller's to wipe; each request copies it into its header."""

    def __init__(  # noqa: PLR0913 - what the api knows of an endpoint
        self,
        base_url: str,
        token: bytearray,
        *,
        ca_pem: str | None,
        server_name: str | None,
        deadline: float,
        connections: int,
    ) -> None:
        """Raises WrongEndpoint for an address, a certificate, a server's name or a token that cannot be used."""
        self._base = base_url.rstrip("/")
        prefix = _prefix(self._base)
        if any(byte < 0x20 or byte == 0x7F for byte in token):  # noqa: PLR2004 - control characters
            raise WrongEndpoint("the token has characters that no header can carry")
        self._token = token
        self._deadline = deadline
        context = http.system_context() if ca_pem is None or not ca_pem.strip() else _own(ca_pem)
        if server_name and not http.is_server_name(server_name):
            raise WrongEndpoint("tls_server_name is not a server's name")
        inner = DiallingTransport(context, egress.resolve, kept=connections)
        self._http = http.Client(ReadOnly(prefix, inner), headers={"Accept": "application/json"})
        self._extensions = {"sni_hostname": server_name} if server_name else {}

    async def application(self, name: str, known: Mapping[str, str]) -> tuple[Application, Mapping[str, str]]:
        """Read an application; return it and the parameters that it was found with. Raises PollFailed.

        `known` is asked with after a 403 only: `project`, `appNamespace`.
        """
        path, used = _path(name), dict[str, str]()
        try:
            content = await self._get(path, used)
        except PollFailed as error:
            if error.outcome is not PollOutcome.FORBIDDEN or not known:
                raise
            used = dict(known)
            content = await self._get(path, used)
        try:
            return documents.application(content, name), used
        except WrongShape as error:
            raise PollFailed(PollOutcome.SHAPE, f"argocd: {path}: decode error: {error}") from None

    async def resources(self, name: str, used: Mapping[str, str]) -> dict[str, Any]:
        """Read an application's resource tree; return its part of the snapshot. Raises PollFailed."""
        path = _path(name) + "/resource-tree"
        content = await self._get(path, used)
        try:
            return documents.resources(content)
        except WrongShape as error:
            raise PollFailed(PollOutcome.SHAPE, f"argocd: {path}: decode error: {error}") from None

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _get(self, path: str, parameters: Mapping[str, str]) -> Any:
        headers = {b"Authorization": b"Bearer " + self._token} if self._token else {}
        request = self._http.build_request(
            "GET", self._base + path, params=parameters or None, headers=headers, extensions=self._extensions
        )
        try:
            async with asyncio.timeout(self._deadline):
                response = await self._http.send(request)
                try:
                    body = await http.read(response, MOST_BODY)
                finally:
                    await response.aclose()
        except TimeoutError:
            text = f"argocd: {path}: no answer within {self._deadline:g}s"
            raise PollFailed(PollOutcome.TIMEOUT, text) from None
        except httpx.HTTPError as error:
            unreachable = isinstance(error, httpx.ConnectError | httpx.ProxyError)
            outcome = PollOutcome.UNREACHABLE if unreachable else PollOutcome.BROKEN
            raise PollFailed(outcome, f"argocd: {path}: cannot be reached ({http.reason(error)})") from None
        return _content(path, response, body)


_MEANINGS: dict[int, tuple[PollOutcome, str]] = {
    HTTPStatus.UNAUTHORIZED: (PollOutcome.UNAUTHORIZED, "unauthorized"),
    HTTPStatus.FORBIDDEN: (PollOutcome.FORBIDDEN, "forbidden"),
    HTTPStatus.NOT_FOUND: (PollOutcome.NOT_FOUND, "not found"),
}
_BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


def _content(path: str, response: httpx.Response, body: bytearray) -> Any:
    status = response.status_code
    if status in _BUSY:
        wish = retry_after(response.headers.get("retry-after", ""), datetime.now(UTC))
        raise PollFailed(PollOutcome.BUSY, f"argocd: {path}: HTTP {status}", retry_after=wish)
    if status != HTTPStatus.OK:
        outcome, text = _MEANINGS.get(status, (PollOutcome.HTTP_ERROR, f"HTTP {status}"))
        raise PollFailed(outcome, f"argocd: {path}: {text}")
    if "json" not in response.headers.get("content-type", "json").lower():
        raise PollFailed(PollOutcome.CONTENT, f"argocd: {path}: decode error: not JSON; is the base URL ArgoCD's?")
    if len(body) > MOST_BODY:
        raise PollFailed(
            PollOutcome.SHAPE, f"argocd: {path}: the answer is longer than {MOST_BODY // 1024 // 1024} MiB"
        )
    try:
        return bounded_input.parse(body, most=MOST_VALUES)
    except bounded_input.TooMany:
        raise PollFailed(PollOutcome.SHAPE, f"argocd: {path}: the answer has more than {MOST_VALUES} values") from None
    except ValueError:
        raise PollFailed(PollOutcome.SHAPE, f"argocd: {path}: decode error: not JSON") from None


def _path(name: str) -> str:
    """Return the application's path, escaped as Go does. Raises PollFailed for a name that would be another path."""
    if name in ("", ".", "..") or len(name) > MOST_NAME:
        raise PollFailed(PollOutcome.CLIENT, "argocd: not an application's name")
    return "/api/v1/applications/" + quote(name, safe="$&+=:@")


def _prefix(base: str) -> str:
    """Return the path of a base URL, as it is sent. Raises WrongEndpoint unless it is one that can be asked."""
    try:
        parts = urlsplit(base)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        fine = fine and not (parts.username or parts.password or parts.query or parts.fragment)
        if fine:
            return httpx.URL(base).raw_path.decode("ascii").rstrip("/")
    except Exception:  # noqa: BLE001 - addresses are odd in as many ways as there are classes of errors
        fine = False
    raise WrongEndpoint("the base URL is not https://host[:port][/path]")


def _own(pem: str) -> ssl.SSLContext:
    try:
        return http.tls_context(pem=pem)
    except ValueError:
        raise WrongEndpoint("tls_ca_pem holds no usable certificate") from None
