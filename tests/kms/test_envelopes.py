"""The published envelopes of the backend `local`: which open, and why the others stay closed."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import UnwrapFailed
from app.kms.buffers import wipe, wiping
from app.kms.envelope import Envelope, open_token
from app.kms.local import LocalKeys, key_id, parse_master
from app.kms.transport import KeyServiceTransport

PUBLISHED = json.loads((Path(__file__).parent / "envelopes.json").read_text())
MASTER = PUBLISHED["master"]
OTHER = "local:2SmKENGwc1g33EvYXaxkGw887yekfl1TpU8vP1svz_o"


def envelope(columns: dict[str, str]) -> Envelope:
    token, nonce, data_key = (base64.b64decode(columns[name]) for name in ("token", "nonce", "data_key"))
    return Envelope(token, nonce, data_key, columns["key_id"])


def opened(sealed: Envelope) -> bytearray:
    return asyncio.run(open_token(sealed, LocalKeys(parse_master(MASTER)), KeyServiceTransport()))


@pytest.mark.parametrize("name", PUBLISHED["opens"])
def test_a_published_envelope_opens(name: str) -> None:
    columns = PUBLISHED["opens"][name]
    assert opened(envelope(columns)) == base64.b64decode(columns["plain"])


REASONS = {
    "wrong-key-id": f"wrapped by key {OTHER}, this worker has {PUBLISHED['key_id']}",
    "dek-tag-tampered": "the data key does not open: tampered",
    "token-tampered": "the token does not open: tampered",
    "dek-ciphertext-short": "the wrapped data key is shorter than its nonce",
    "dek-16-bytes": "the data key is not 32 bytes long",
    "vault-form-under-local": f"wrapped by key vault-transit:transit/sb-wrap, this worker has {PUBLISHED['key_id']}",
}


@pytest.mark.parametrize("name", PUBLISHED["stays_closed"])
def test_each_bad_envelope_stays_closed_for_a_reason_of_its_own(name: str) -> None:
    columns = PUBLISHED["stays_closed"][name]
    with pytest.raises(UnwrapFailed) as refused:
        opened(envelope(columns))
    assert str(refused.value) == REASONS[name]
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None or refused.value.__suppress_context__
    assert len(set(REASONS.values())) == len(PUBLISHED["stays_closed"]) == 6


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"nonce": "AAAA"}, "the token's nonce is not 12 bytes long"),
        ({"token": "AAAA"}, "the token is shorter than its seal"),
        ({"data_key": base64.b64encode(bytes(20)).decode()}, "the wrapped data key is shorter than its seal"),
        ({"data_key": base64.b64encode(bytes(28)).decode()}, "the data key does not open: tampered"),
    ],
)
def test_an_envelope_of_the_wrong_size_stays_closed(change: dict[str, str], reason: str) -> None:
    with pytest.raises(UnwrapFailed, match=reason):
        opened(envelope({**PUBLISHED["opens"]["short-ascii"], **change}))


def test_the_master_keys_id_is_the_published_one() -> None:
    assert key_id(parse_master(MASTER)) == PUBLISHED["key_id"]


@pytest.mark.parametrize(
    "text",
    [MASTER, MASTER[:10] + "\n" + MASTER[10:] + "\r\n", MASTER[:-2] + "9="],
    ids=["plain", "with line breaks", "with bits after the end"],
)
def test_a_master_key_is_read_as_go_reads_it(text: str) -> None:
    assert parse_master(text) == bytes(range(32))


@pytest.mark.parametrize("text", ["", "AAEC", MASTER[:-1], " " + MASTER, MASTER + "AAAA", MASTER.replace("A", "-", 1)])
def test_what_is_not_a_master_key_is_refused_without_its_value(text: str) -> None:
    with pytest.raises(ValueError, match="not a key; accepted: standard base64, padded, of 32 bytes"):
        parse_master(text)


def test_an_envelope_and_its_key_show_nothing_of_themselves() -> None:
    sealed = envelope(PUBLISHED["opens"]["short-ascii"])
    assert repr(sealed) == "Envelope()"
    shown = repr(LocalKeys(parse_master(MASTER)))
    assert MASTER not in shown
    assert repr(bytes(range(32))) not in shown


def test_a_data_key_is_wiped_whether_or_not_the_token_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bytearray] = []

    class Watched:
        async def unwrap(self, wrapped: bytes, key_id: str, transport: KeyServiceTransport) -> bytearray:
            key = await LocalKeys(parse_master(MASTER)).unwrap(wrapped, key_id, transport)
            given.append(key)
            return key

    def open_with(name: str, where: str) -> Any:
        return asyncio.run(open_token(envelope(PUBLISHED[where][name]), Watched(), KeyServiceTransport()))

    open_with("short-ascii", "opens")
    with pytest.raises(UnwrapFailed):
        open_with("token-tampered", "stays_closed")
    with pytest.raises(UnwrapFailed):
        open_with("dek-16-bytes", "stays_closed")
    assert [len(key) for key in given] == [32, 32, 16]
    assert not any(byte for key in given for byte in key)


def test_wiping_overwrites_the_same_memory() -> None:
    secret = bytearray(b"secret")
    view = memoryview(secret)
    with wiping(secret):
        pass
    assert bytes(view) == bytes(6)
    again = bytearray(b"again")
    wipe(again)
    assert again == bytes(5)
