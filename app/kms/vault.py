"""The backend `vault-transit`: HashiCorp Vault's transit engine, with a token or a Kubernetes service account."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from app.core.bounded_input import content
from app.core.errors import UnwrapFailed
from app.kms.checks import is_loopback
from app.kms.transport import KeyServiceTransport, Policy, Reply, Request, Retry, plaintext

if TYPE_CHECKING:
    from pydantic import SecretStr

_SERVICE = "vault"
#: How a wrapped data key begins, and the shortest one, bytes.
_PREFIX, _SHORTEST = b"vault:", 9
#: Share of a login's lifetime that is used; then there is a new login.
_LIFETIME_SHARE = 0.9
#: Seconds for which a login is used at most, whatever Vault says: an integer in JSON may have more digits than a float.
_LONGEST_LOGIN = 24 * 3600
#: How often a request is sent again after a failure, and how an address begins that is a Unix socket's, as in Go.
RETRIES, SOCKET = 2, "unix://"
_BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.PRECONDITION_FAILED)
#: What Vault answers to a role, a token or a mount that is not as it should be.
_NO_LOGIN = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)
_REDIRECTS = (HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.FOUND, HTTPStatus.TEMPORARY_REDIRECT)
_MEANING: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: "vault refuses the data key (HTTP 400): wrapped by another key, or tampered",
    HTTPStatus.FORBIDDEN: "vault refuses the credentials or their policy (HTTP 403); it must allow update on decrypt",
    HTTPStatus.NOT_FOUND: "vault knows no such mount or key (HTTP 404)",
    HTTPStatus.PRECONDITION_FAILED: "vault's node is behind the others (HTTP 412), and did not catch up in time",
    HTTPStatus.TOO_MANY_REQUESTS: "vault limits the rate of requests (HTTP 429), for longer than a run can wait",
    HTTPStatus.SERVICE_UNAVAILABLE: "vault is sealed or under maintenance (HTTP 503)",
}


class Place(NamedTuple):
    """Which key of which Vault."""

    address: str
    mount: str
    key: str
    namespace: str


class Options(NamedTuple):
    """How Vault is asked: what its own Go client has variables for."""

    retries: int = RETRIES
    follow: bool = True
    #: Seconds that a request may take; None for the transport's deadline.
    seconds: float | None = None
    #: The name that its certificate must have; empty for the address's host.
    server_name: str = ""
    headers: tuple[tuple[str, str], ...] = ()


class Kubernetes(NamedTuple):
    """How a pod logs in: its role, the auth method's mount, the file with its service account's token."""

    role: str
    mount: str
    jwt_path: str


class VaultKeys:
    """Unwraps by `<mount>/decrypt/<key>`. A login is kept until most of its lifetime is over."""

    def __init__(
        self,
        place: Place,
        *,
        token: SecretStr | Callable[[], SecretStr] | None = None,
        login: Kubernetes | None = None,
        options: Options | None = None,
    ) -> None:
        """`token` may be a function that returns the one to use now."""
        self._place = place
        self._token = token
        self._login = login
        self._options = options or Options()
        self._socket = place.address.removeprefix(SOCKET) if place.address.startswith(SOCKET) else ""
        self._base = "http://localhost" if self._socket else place.address.rstrip("/")
        self._policy = Policy(self._options.retries, _judge)
        self._session = ""
        self._fresh_until = 0.0

    async def unwrap(self, wrapped: bytes, key_id: str, transport: KeyServiceTransport) -> bytearray:
        """Return the data key. The stored id is not used: Vault's own prefix names the version of the key."""
        del key_id
        if len(wrapped) < _SHORTEST or not wrapped.startswith(_PREFIX):
            raise UnwrapFailed("the wrapped data key is not in Vault's form")
        try:
            body = json.dumps({"ciphertext": wrapped.decode("ascii")}).encode()
        except UnicodeDecodeError:
            raise UnwrapFailed("the wrapped data key is not in Vault's form") from None
        path = f"{_quoted(self._place.mount)}/decrypt/{quote(self._place.key, safe='')}"
        token = await self._credentials(transport)
        reply = await self._send(transport, path, body, token)
        if reply.status == HTTPStatus.FORBIDDEN:  # the login may have been revoked, or the token replaced
            renewed = await self._credentials(transport, refused=token)
            if renewed != token:
                reply = await self._send(transport, path, body, renewed)
        if reply.status != HTTPStatus.OK:
            raise UnwrapFailed(_meaning(reply.status))
        data = reply.content().get("data")
        return plaintext(_SERVICE, data.get("plaintext") if isinstance(data, dict) else None)

    async def _credentials(self, transport: KeyServiceTransport, *, refused: str = "") -> str:
        """Return a token that is not the `refused` one; concurrent calls share one login."""
        if self._token is not None:
            token = self._token() if callable(self._token) else self._token
            return token.get_secret_value()
        async with transport.login:
            if self._session == refused or time.monotonic() >= self._fresh_until:
                await self._log_in(transport)
            return self._session

    async def _log_in(self, transport: KeyServiceTransport) -> None:
        assert self._login is not None
        try:
            jwt = content(self._login.jwt_path).decode("ascii").strip()
        except (OSError, UnicodeDecodeError):
            raise UnwrapFailed("vault login: the service account's token cannot be read") from None
        body = json.dumps({"role": self._login.role, "jwt": jwt}).encode()
        reply = await self._send(transport, f"auth/{_quoted(self._login.mount)}/login", body, "")
        if reply.status in _NO_LOGIN:
            raise UnwrapFailed(f"vault login: refused (HTTP {reply.status}); check the role and its bound accounts")
        if reply.status != HTTPStatus.OK:
            raise UnwrapFailed(f"vault login: {_meaning(reply.status)}")
        auth = reply.content().get("auth")
        token = auth.get("client_token") if isinstance(auth, dict) else None
        if not isinstance(auth, dict) or not isinstance(token, str) or not token:
            raise UnwrapFailed("vault login: the answer has no token")
        duration = auth.get("lease_duration")
        lifetime = min(duration, _LONGEST_LOGIN) if isinstance(duration, int) and duration > 0 else 0
        self._session = token
        self._fresh_until = time.monotonic() + lifetime * _LIFETIME_SHARE

    async def _send(self, transport: KeyServiceTransport, path: str, body: bytes, token: str) -> Reply:
        """Send to Vault; if it says that another node does the work, once more to that one."""
        headers = {**dict(self._options.headers), "Content-Type": "application/json", "X-Vault-Request": "true"}
        if token:
            headers["X-Vault-Token"] = token
        if self._place.namespace:
            headers["X-Vault-Namespace"] = self._place.namespace
        server_name, seconds = self._options.server_name, self._options.seconds
        url = f"{self._base}/v1/{path}"
        first = Request("POST", url, headers, body, server_name=server_name, socket=self._socket, seconds=seconds)
        reply = await transport.send(_SERVICE, lambda: first, self._policy)
        if reply.status not in _REDIRECTS or not self._options.follow:
            return reply
        second = first._replace(url=_target(url, reply))
        return await transport.send(_SERVICE, lambda: second, self._policy)


def _meaning(status: int) -> str:
    return _MEANING.get(status, f"vault answers HTTP {status}")


def _judge(reply: Reply) -> Retry:
    if reply.status in _BUSY:
        return Retry.WAIT
    failed = reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR and reply.status != HTTPStatus.NOT_IMPLEMENTED
    return Retry.FAILED if failed else Retry.NO


def _target(url: str, reply: Reply) -> str:
    """Return where an answer redirects to. Raises UnwrapFailed if the token would travel less safely than before."""
    target = reply.headers.get("Location", "")
    try:
        safe = bool(target) and _as_safe(urlsplit(url), urlsplit(target := urljoin(url, target)))
    except ValueError:
        safe = False
    if not safe:
        raise UnwrapFailed(
            f"vault redirects (HTTP {reply.status}) to no https:// address, where no token is sent; "
            "name the active node in SB_KMS_VAULT_ADDR"
        )
    return target


def _as_safe(before: SplitResult, after: SplitResult) -> bool:
    """Return whether what is sent to `after` shows itself to nobody who did not see it on its way to `before`."""
    if not after.hostname or after.username is not None:
        return False
    here = is_loopback(after.hostname) or not is_loopback(before.hostname or "")
    return after.scheme == "https" or (after.scheme == before.scheme == "http" and here)


def _quoted(mount: str) -> str:
    return quote(mount.strip("/"), safe="/")
