"""The one interface to a key service, and the envelope that it helps to open.

A token is sealed with AES-256-GCM under a data key of its own; the data key is wrapped by the key service.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from app.core.errors import UnwrapFailed, describe
from app.kms.buffers import wipe, wiping

if TYPE_CHECKING:
    from app.kms.transport import KeyServiceTransport


#: Lengths of the api's AES-256 keys, GCM nonces and GCM tags, bytes.
KEY, NONCE, TAG = 32, 12, 16


@dataclass(frozen=True)
class Envelope:
    """A sealed token, as the columns of `argocd_endpoints` have it."""

    token_ciphertext: bytes = field(repr=False)
    token_nonce: bytes = field(repr=False)
    token_data_key_ciphertext: bytes = field(repr=False)
    token_kms_key_id: str = field(repr=False)


class KeyManager(Protocol):
    """A key service."""

    async def unwrap(self, wrapped: bytes, key_id: str, transport: KeyServiceTransport) -> bytearray:
        """Return the data key, 32 bytes, for the caller to wipe. Raises UnwrapFailed, whose text holds no value."""
        ...


async def open_token(envelope: Envelope, keys: KeyManager, transport: KeyServiceTransport) -> bytearray:
    """Return the token, for the caller to wipe. Raises UnwrapFailed for whatever goes wrong; its text holds no value.

    All that the key manager asks for, logins and credentials as well, has `transport.whole` seconds.
    """
    try:
        async with asyncio.timeout(transport.whole):
            return await _open(envelope, keys, transport)
    except UnwrapFailed:
        raise
    except TimeoutError:
        raise UnwrapFailed(f"no data key within {transport.whole:g}s") from None
    except Exception as error:  # noqa: BLE001 - one row, or one answer: the other tokens are opened all the same
        raise UnwrapFailed(f"unexpected {describe(error).error}") from None


async def _open(envelope: Envelope, keys: KeyManager, transport: KeyServiceTransport) -> bytearray:
    if len(envelope.token_nonce) != NONCE:
        raise UnwrapFailed("the token's nonce is not 12 bytes long")
    if len(envelope.token_ciphertext) < TAG:
        raise UnwrapFailed("the token is shorter than its seal")
    data_key = await keys.unwrap(envelope.token_data_key_ciphertext, envelope.token_kms_key_id, transport)
    with wiping(data_key):
        if len(data_key) != KEY:
            raise UnwrapFailed("the data key is not 32 bytes long")
        return open_sealed(
            data_key, envelope.token_nonce, envelope.token_ciphertext, "the token does not open: tampered"
        )


def open_sealed(key: bytearray, nonce: bytes, sealed: bytes, reason: str) -> bytearray:
    """Decrypt AES-256-GCM without associated data into a new buffer. Raises UnwrapFailed(reason) when it does not."""
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - only where tokens are opened
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    plain = bytearray(len(sealed) - TAG)
    try:
        AESGCM(key).decrypt_into(nonce, sealed, None, plain)
    except InvalidTag:
        wipe(plain)
        raise UnwrapFailed(reason) from None
    return plain
