"""The backend `aws-kms`: Decrypt of AWS's key management service, signed by our own hand."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from app.core.errors import UnwrapFailed
from app.kms.aws_credentials import Credentials, find, suffix
from app.kms.aws_sigv4 import sign
from app.kms.transport import KeyServiceTransport, Reply

_OK = 200
#: Errors of the service that are told by name; anything else is told by its HTTP status.
_KNOWN = frozenset(
    {
        "AccessDeniedException", "DisabledException", "ExpiredTokenException", "IncompleteSignature",
        "IncorrectKeyException", "InvalidCiphertextException", "InvalidKeyUsageException", "InvalidSignatureException",
        "KMSInternalException", "KMSInvalidStateException", "KeyUnavailableException", "MissingAuthenticationToken",
        "NotFoundException", "ThrottlingException", "UnrecognizedClientException", "ValidationException",
    }
)  # fmt: skip
#: Errors that other credentials may not meet.
_STALE = frozenset({"ExpiredTokenException", "UnrecognizedClientException"})


class Place(NamedTuple):
    """Which key, in which region, asked at which endpoint (empty: the region's own)."""

    region: str
    key: str
    endpoint: str


def _utc() -> datetime:
    return datetime.now(UTC)


class AwsKeys:
    """Unwraps by Decrypt under the configured key. Credentials are kept until shortly before they expire."""

    def __init__(
        self, place: Place, environ: Mapping[str, str] = os.environ, clock: Callable[[], datetime] = _utc
    ) -> None:
        self._place = place
        self._environ = environ
        self._clock = clock
        self._url = (place.endpoint or f"https://kms.{place.region}.{suffix(place.region)}").rstrip("/") + "/"
        self._credentials: Credentials | None = None

    async def unwrap(self, wrapped: bytes, key_id: str, transport: KeyServiceTransport) -> bytearray:
        """Give the data key. The stored id is not looked at: the configured key is asked for."""
        del key_id
        if not wrapped:
            raise UnwrapFailed("the wrapped data key is empty")
        body = json.dumps({"CiphertextBlob": base64.b64encode(wrapped).decode(), "KeyId": self._place.key}).encode()
        credentials = await self._current(transport)
        reply = await self._decrypt(transport, body, credentials)
        if reply.status != _OK and _name(reply) in _STALE:
            reply = await self._decrypt(transport, body, await self._current(transport, refused=credentials))
        if reply.status != _OK:
            raise UnwrapFailed(f"aws kms: {_name(reply) or f'HTTP {reply.status}'}")
        text = reply.content().get("Plaintext")
        try:
            plain = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
        except (binascii.Error, ValueError):
            plain = b""
        if not plain:
            raise UnwrapFailed("aws kms: the answer has no plaintext")
        return bytearray(plain)

    async def _current(self, transport: KeyServiceTransport, *, refused: Credentials | None = None) -> Credentials:
        """Give fresh credentials that are not the `refused` ones; many that ask at once cause one search."""
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
        return await transport.send("aws kms", "POST", self._url, headers, body)


def _name(reply: Reply) -> str:
    """Give the error's name if it is a known one; the body may still be read afterwards."""
    try:
        said = json.loads(reply.body)
        name = str(said.get("__type", "")).rpartition("#")[2] if isinstance(said, dict) else ""
    except (ValueError, RecursionError):
        return ""
    return name if name in _KNOWN else ""
