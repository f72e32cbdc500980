"""The backend `aws-kms`: the action Decrypt of AWS's key management service, signed without an SDK."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from app.core.errors import UnwrapFailed
from app.kms.aws_client import AwsClient, error_of
from app.kms.aws_config import AwsConfig
from app.kms.aws_credentials import find
from app.kms.aws_sigv4 import Credentials
from app.kms.transport import KeyServiceTransport, Reply, plaintext

_SERVICE = "aws kms"
_HEADERS = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": "TrentService.Decrypt"}
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
        """Raises UnwrapFailed for variables, or a profile, that no client could use."""
        self._place = place
        self._environ = environ
        config = self._config()
        self._url = config.endpoint("kms")
        self._client = AwsClient(config, clock)
        self._credentials: Credentials | None = None

    async def unwrap(self, wrapped: bytes, key_id: str, transport: KeyServiceTransport) -> bytearray:
        """Return the data key. The stored id is not used: the configured key must have wrapped it."""
        del key_id
        if not wrapped:
            raise UnwrapFailed("the wrapped data key is empty")
        body = json.dumps({"CiphertextBlob": base64.b64encode(wrapped).decode(), "KeyId": self._place.key}).encode()
        credentials = await self._current(transport)
        reply = await self._decrypt(transport, body, credentials)
        error = error_of(reply)
        if error in _STALE_CREDENTIALS:
            reply = await self._decrypt(transport, body, await self._current(transport, refused=credentials))
            error = error_of(reply)
        if error:
            raise UnwrapFailed(f"{_SERVICE}: {error}")
        return plaintext(_SERVICE, reply.content().get("Plaintext"))

    async def _current(self, transport: KeyServiceTransport, *, refused: Credentials | None = None) -> Credentials:
        """Return fresh credentials that are not the `refused` ones; concurrent calls share one search.

        When there are no fresh ones to be had, those that expire soon are used until they are refused.
        """
        async with transport.login:
            kept = self._credentials if self._credentials is not refused else None
            if kept is None or not kept.fresh(self._client.now()):
                try:
                    # The files are read anew, because they are replaced under a running process.
                    kept = await find(self._config(), self._client, transport)
                except UnwrapFailed:
                    if kept is None:
                        raise
            self._credentials = kept
            return kept

    def _config(self) -> AwsConfig:
        return AwsConfig(self._environ, self._place.region, self._place.endpoint)

    async def _decrypt(self, transport: KeyServiceTransport, body: bytes, credentials: Credentials) -> Reply:
        return await self._client.post(
            transport, _SERVICE, self._url, _HEADERS, body, service="kms", credentials=credentials
        )
