"""The backend `local`: a master key from the environment. For development only."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING

from app.core.errors import UnwrapFailed
from app.kms.envelope import KEY, NONCE, TAG, open_sealed

if TYPE_CHECKING:
    from app.kms.transport import KeyServiceTransport

_ACCEPTED = "not a key; accepted: standard base64, padded, of 32 bytes"
_SHOWN = 80


def parse_master(text: str) -> bytearray:
    """Read a master key as Go's base64 does: line breaks are ignored, all else that is not base64 is refused."""
    try:
        key = bytearray(base64.b64decode(text.replace("\r", "").replace("\n", ""), validate=True))
    except (binascii.Error, ValueError):
        raise ValueError(_ACCEPTED) from None
    if len(key) != KEY:
        raise ValueError(_ACCEPTED)
    return key


def key_id(master: bytes | bytearray) -> str:
    """Name a master key by its hash, as the api stores it beside what it wrapped."""
    return "local:" + base64.urlsafe_b64encode(hashlib.sha256(master).digest()).rstrip(b"=").decode()


class LocalKeys:
    """Unwraps with the master key itself: nonce, sealed data key and tag in one."""

    def __init__(self, master: bytearray) -> None:
        self._master = master
        self._id = key_id(master)

    async def unwrap(self, wrapped: bytes, key_id: str, transport: KeyServiceTransport) -> bytearray:
        """Give the data key. The stored id must be this master key's."""
        del transport
        if key_id != self._id:
            stored = "".join(sign if sign.isprintable() else "?" for sign in key_id[:_SHOWN])
            raise UnwrapFailed(f"wrapped by key {stored}, this worker has {self._id}")
        if len(wrapped) < NONCE:
            raise UnwrapFailed("the wrapped data key is shorter than its nonce")
        if len(wrapped) < NONCE + TAG:
            raise UnwrapFailed("the wrapped data key is shorter than its seal")
        return open_sealed(self._master, wrapped[:NONCE], wrapped[NONCE:], "the data key does not open: tampered")
