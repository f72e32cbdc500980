"""The backend `vault-transit`: HashiCorp Vault's transit engine, with a token or a Kubernetes service account."""

from __future__ import annotations

import json
import time
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from app.core.errors import UnwrapFailed
from app.kms.transport import KeyServiceTransport, Reply, plaintext

if TYPE_CHECKING:
    from pydantic import SecretStr

_SERVICE = "vault"
#: How a wrapped data key begins, and the shortest one, bytes.
_PREFIX, _SHORTEST = b"vault:", 9
#: Share of a login's lifetime that is used; then there is a new login.
_LIFETIME_SHARE = 0.9
#: Seconds for which a login is used at most, whatever Vault says: an integer in JSON may have more digits than a float.
_LONGEST_LOGIN = 24 * 3600
_MEANING: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: "vault refuses the data key (HTTP 400): wrapped by another key, or tampered",
    HTTPStatus.FORBIDDEN: "vault refuses the credentials or their policy (HTTP 403); it must allow update on decrypt",
    HTTPStatus.NOT_FOUND: "vault knows no such mount or key (HTTP 404)",
    HTTPStatus.TOO_MANY_REQUESTS: "vault is a standby that does not forward (HTTP 429)",
    HTTPStatus.SERVICE_UNAVAILABLE: "vault is sealed or under maintenance (HTTP 503)",
}


class Place(NamedTuple):
    """Which key of which Vault."""

    address: str
    mount: str
    key: str
    namespace: str


class Kubernetes(NamedTuple):
    """How a pod logs in: its role, the auth method's mount, the file with its service account's token."""

    role: str
    mount: str
    jwt_path: str


class VaultKeys:
    """Unwraps by `<mount>/decrypt/<key>`. A login is kept until most of its lifetime is over."""

    def __init__(self, place: Place, *, token: SecretStr | None = None, login: Kubernetes | None = None) -> None:
        self._place = place
        self._token = token
        self._login = login
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
        if reply.status == HTTPStatus.FORBIDDEN and self._login is not None:  # the login may have been revoked
            reply = await self._send(transport, path, body, await self._credentials(transport, refused=token))
        if reply.status != HTTPStatus.OK:
            raise UnwrapFailed(_MEANING.get(reply.status, f"vault answers HTTP {reply.status}"))
        data = reply.content().get("data")
        return plaintext(_SERVICE, data.get("plaintext") if isinstance(data, dict) else None)

    async def _credentials(self, transport: KeyServiceTransport, *, refused: str = "") -> str:
        """Return a token that is not the `refused` one; concurrent calls share one login."""
        if self._token is not None:
            return self._token.get_secret_value()
        async with transport.login:
            if self._session == refused or time.monotonic() >= self._fresh_until:
                await self._log_in(transport)
            return self._session

    async def _log_in(self, transport: KeyServiceTransport) -> None:
        assert self._login is not None
        try:
            jwt = Path(self._login.jwt_path).read_text(encoding="ascii").strip()  # noqa: ASYNC240 - one small file
        except (OSError, UnicodeDecodeError):
            raise UnwrapFailed("vault login: the service account's token cannot be read") from None
        body = json.dumps({"role": self._login.role, "jwt": jwt}).encode()
        reply = await self._send(transport, f"auth/{_quoted(self._login.mount)}/login", body, "")
        if reply.status != HTTPStatus.OK:
            raise UnwrapFailed(f"vault login: refused (HTTP {reply.status}); check the role and its bound accounts")
        auth = reply.content().get("auth")
        token = auth.get("client_token") if isinstance(auth, dict) else None
        if not isinstance(auth, dict) or not isinstance(token, str) or not token:
            raise UnwrapFailed("vault login: the answer has no token")
        duration = auth.get("lease_duration")
        lifetime = min(duration, _LONGEST_LOGIN) if isinstance(duration, int) and duration > 0 else 0
        self._session = token
        self._fresh_until = time.monotonic() + lifetime * _LIFETIME_SHARE

    async def _send(self, transport: KeyServiceTransport, path: str, body: bytes, token: str) -> Reply:
        headers = {"Content-Type": "application/json", "X-Vault-Request": "true"}
        if token:
            headers["X-Vault-Token"] = token
        if self._place.namespace:
            headers["X-Vault-Namespace"] = self._place.namespace
        return await transport.send(_SERVICE, "POST", f"{self._place.address.rstrip('/')}/v1/{path}", headers, body)


def _quoted(mount: str) -> str:
    return quote(mount.strip("/"), safe="/")
