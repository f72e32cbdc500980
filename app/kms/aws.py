"""The backend `aws-kms`: the action Decrypt of AWS's key management service, signed without an SDK."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import NamedTuple

from app.core.errors import UnwrapFailed
from app.kms.aws_credentials import Credentials, find, suffix
from app.kms.aws_sigv4 import sign
from app.kms.transport import KeyServiceTransport, Reply, plaintext

_SERVICE = "aws kms"
#: Errors of the service that are reported by name; any other is reported by its HTTP status.
_KNOWN = frozenset(
    {
        "AccessDeniedException", "DisabledException", "ExpiredTokenException", "IncompleteSignature",
        "IncorrectKeyException", "InvalidCiphertextException", "InvalidKeyUsageException", "InvalidSignatureException",
        "KMSInternalException", "KMSInvalidStateException", "KeyUnavailableException", "MissingAuthenticationToken",
        "NotFoundException", "ThrottlingException", "UnrecognizedClientException", "ValidationException",
    }
)  # fmt: skip
#: Errors that other credentials may not get.
_STALE_CREDENTIALS = frozenset({"ExpiredTokenException", "UnrecognizedClientException"})


class Place(NamedTuple):
    """Which key, in which region, at which endpoint (empty: the region's own)."""

    region: str
    key: str
    endpoint: str


def _utc() -> datetime:
    return datetime.now(UTC)


class AwsKeys:
    """Unwraps by Decrypt with the configured key. Credentials are kept until shortly before they expire."""

    def __init__(
        self, place: Place, environ: Mapping[str, str] = os.environ, clock: Callable[[], datetime] = _utc
    ) -> None:
        self._place = place
        self._environ = environ
        self._clock = clock
        self._url = (place.endpoint or f"https://kms.{place.region}.{suffix(place.region)}").rstrip("/") + "/"
        self._credentials: Credentials | None = None

    async def unwrap(self, wrapped: bytes, key_id: str, transport: KeyServiceTransport) -> bytearray:
        """Return the data key. The stored id is not used: the configured key must have wrapped it."""
        del key_id
        if not wrapped:
            raise UnwrapFailed("the wrapped data key is empty")
        body = json.dumps({"CiphertextBlob": base64.b64encode(wrapped).decode(), "KeyId": self._place.key}).encode()
        credentials = await self._current(transport)
        reply = await self._decrypt(transport, body, credentials)
        error = _error(reply)
        if error in _STALE_CREDENTIALS:
            reply = await self._decrypt(transport, body, await self._current(transport, refused=credentials))
            error = _error(reply)
        if error:
            raise UnwrapFailed(f"{_SERVICE}: {error}")
        return plaintext(_SERVICE, reply.content().get("Plaintext"))

    async def _current(self, transport: KeyServiceTransport, *, refused: Credentials | None = None) -> Credentials:
        """Return fresh credentials that are not the `refused` ones; concurrent calls share one search."""
        async with transport.login:
            kept = self._credentials
            if kept is None or kept is refused or not kept.fresh(self._clock()):
                kept = self._credentials = await find(self._environ, self._place.region, transport)
            return kept

    async def _decrypt(self, transport: KeyServiceTransport, body: bytes, credentials: Credentials) -> Reply:
        headers = sign(
            "POST",
            self._url,
            {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": "TrentService.Decrypt"},
            body,
            credentials=credentials,
            region=self._place.region,
            service="kms",
            now=self._clock(),
        )
        return await transport.send(_SERVICE, "POST", self._url, headers, body)


def _error(reply: Reply) -> str:
    """Return the error's name if it is a known one, else the HTTP status; empty for an answer without an error."""
    if reply.status == HTTPStatus.OK:
        return ""
    name = str(reply.content().get("__type", "")).rpartition("#")[2]
    return name if name in _KNOWN else f"HTTP {reply.status}"
