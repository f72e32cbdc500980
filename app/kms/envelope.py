"""The one interface to a key service, and the envelope that it helps to open.

A token is sealed with AES-256-GCM under a data key of its own; the data key is wrapped by the key service. Both live
in buffers that are overwritten after use. What Python copies on the way (a header, a parsed answer) cannot be.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from app.core.errors import UnwrapFailed

if TYPE_CHECKING:
    from app.kms.transport import KeyServiceTransport

#: The api's sizes, bytes: AES-256 keys, GCM's usual nonce and tag.
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
        """Give the data key, 32 bytes for the caller to wipe. Raises UnwrapFailed, whose text holds no value."""
        ...


async def open_token(envelope: Envelope, keys: KeyManager, transport: KeyServiceTransport) -> bytearray:
    """Give the token, for the caller to wipe. Raises UnwrapFailed, whose text holds no value."""
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


def open_sealed(key: bytearray | bytes, nonce: bytes, sealed: bytes, wrong: str) -> bytearray:
    """Decrypt AES-256-GCM without associated data into a buffer of its own. Raises UnwrapFailed with `wrong`."""
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - only where tokens are opened
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    plain = bytearray(len(sealed) - TAG)
    try:
        AESGCM(key).decrypt_into(nonce, sealed, None, plain)
    except InvalidTag:
        wipe(plain)
        raise UnwrapFailed(wrong) from None
    return plain


def wipe(buffer: bytearray) -> None:
    """Overwrite a buffer with zeros."""
    buffer[:] = bytes(len(buffer))


@contextmanager
def wiping(buffer: bytearray) -> Iterator[bytearray]:
    """Overwrite the buffer when the body is over, however it ends."""
    try:
        yield buffer
    finally:
        wipe(buffer)
