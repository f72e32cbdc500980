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
#: Characters of a stored key id that an error shows: it is a row's content, of any length.
_MOST_SHOWN = 80


def parse_master(text: str) -> bytearray:
    """Parse a master key as Go's base64 does: line breaks are ignored, anything else that is not base64 is refused.

    Raises ValueError when it is not the base64 of 32 bytes.
    """
    try:
        key = bytearray(base64.b64decode(text.replace("\r", "").replace("\n", ""), validate=True))
    except (binascii.Error, ValueError):
        raise ValueError(_ACCEPTED) from None
    if len(key) != KEY:
        raise ValueError(_ACCEPTED)
    return key


def key_id(master: bytes | bytearray) -> str:
    """Return the id of a master key, a hash of it, as the api stores it beside each data key that it wrapped."""
    return "local:" + base64.urlsafe_b64encode(hashlib.sha256(master).digest()).rstrip(b"=").decode()


class LocalKeys:
    """Unwraps with the master key itself: nonce, sealed data key and tag in one."""

    def __init__(self, master: bytearray) -> None:
        self._master = master
        self._id = key_id(master)

    async def unwrap(self, wrapped: bytes, key_id: str, transport: KeyServiceTransport) -> bytearray:
        """Return the data key. Raises UnwrapFailed, also when the stored id is not this master key's."""
        del transport
        if key_id != self._id:
            stored = "".join(character if character.isprintable() else "?" for character in key_id[:_MOST_SHOWN])
            raise UnwrapFailed(f"wrapped by key {stored}, this worker has {self._id}")
        if len(wrapped) < NONCE:
            raise UnwrapFailed("the wrapped data key is shorter than its nonce")
        if len(wrapped) < NONCE + TAG:
            raise UnwrapFailed("the wrapped data key is shorter than its seal")
        return open_sealed(self._master, wrapped[:NONCE], wrapped[NONCE:], "the data key does not open: tampered")
