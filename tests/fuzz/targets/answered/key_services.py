"""Key services' answers and sealed tokens: a key, or a reason without a value of them; never anything else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from hypothesis import strategies as st
from pydantic import SecretStr

from app.core.errors import UnwrapFailed
from app.kms import vault
from app.kms.envelope import Envelope, KeyManager, open_token
from app.kms.local import LocalKeys, parse_master
from app.kms.transport import KeyServiceTransport
from tests.fuzz.http_answers import wholes
from tests.fuzz.target import Holds, Servers, Target, target
from tests.fuzz.texts import CANARY, environment, spoiled
from tests.fuzz.wire import Script, Speaker, answer_requests, loop, scripts
from tests.support.argocd import MASTER, TOKEN, seal
from tests.support.key_services import KEY_TEXT, SEALED, SECRET, kms

_VAULT = {
    "data": {"plaintext": KEY_TEXT, "key_version": 3},
    "auth": {"client_token": CANARY, "lease_duration": 10**400},
}
_AWS = {"Plaintext": KEY_TEXT, "KeyId": "x", "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}
_ERROR = {"__type": "com.amazon#ThrottlingException:http", "message": CANARY}
_ROLE = {"AccessKeyId": "A", "SecretAccessKey": CANARY, "Token": "x", "Expiration": "9999-12-31T23:59:59-23:59"}
_XML = (
    b"<R><AccessKeyId>A</AccessKeyId><SecretAccessKey>x</SecretAccessKey><SessionToken>y</SessionToken>"
    b"<Expiration>2026-11-23T10:00:00Z</Expiration><Code>AccessDenied</Code></R>"
)
BODIES = st.one_of(
    [spoiled(one).map(json.dumps).map(str.encode) for one in (_VAULT, _AWS, _ERROR, _ROLE)]
) | st.sampled_from([_XML, b"role\n", b"", b"[" * 9000, b"\xff", _XML[:50]])


class Given(NamedTuple):
    """Which service is asked, and what it answers to each request."""

    service: int
    script: Script


def _managers(url: str, jwt: str) -> list[KeyManager]:
    place = vault.Place(url, "transit", "k", "")
    container = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{url}/creds"}
    instance = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": url}
    role = {"AWS_WEB_IDENTITY_TOKEN_FILE": jwt, "AWS_ROLE_ARN": "arn:aws:iam::1:role/x", "AWS_ENDPOINT_URL_STS": url}
    return [
        vault.VaultKeys(place, token=SecretStr(CANARY)),
        vault.VaultKeys(place, login=vault.Kubernetes("r", "kubernetes", jwt)),
        kms(url),
        *(kms(url, environ) for environ in (container, instance, role)),
    ]


@contextmanager
def _opened(_servers: Servers) -> Iterator[Holds[Given]]:
    with loop() as run, environment({}):
        speaker = Speaker(answer_requests)
        run(speaker.start())
        url = f"http://127.0.0.1:{speaker.port}"

        async def case(given: Given) -> None:
            speaker.script = given.script
            managers = _managers(url, __file__)
            transport = KeyServiceTransport(deadline=0.1, first_wait=0.001)
            envelope = Envelope(b"x" * 40, b"n" * 12, SEALED, "id")
            try:
                await open_token(envelope, managers[given.service % len(managers)], transport)
            except UnwrapFailed as error:
                text = str(error)
                assert not [value for value in (CANARY, SECRET, KEY_TEXT) if value in text]
                assert text.isprintable()
                assert not text.startswith("unexpected"), text
                assert error.__cause__ is None
            finally:
                await transport.close()

        try:
            yield lambda given: run(case(given))
        finally:
            run(speaker.stop())


key_services = Target(
    "key-services",
    st.builds(Given, st.integers(0, 5), scripts(wholes(BODIES), ("close", "reset"))),
    _opened,
    lambda data: Given(data[0] if data else 0, Script((data[1:],))),
    cases=60,
)

_SEALED = seal()
_COLUMNS = st.binary(max_size=80)


def _spoiled(at: int, byte: int, name: str, column: bytes | None) -> Envelope:
    columns = dict(_SEALED)
    if column is None and name != "token_kms_key_id":
        whole = bytearray(columns[name])
        whole[at % len(whole)] ^= byte
        column = bytes(whole)
    columns[name] = columns[name] if column is None else column.hex() if name == "token_kms_key_id" else column
    return Envelope(**columns)


@target(
    "envelopes",
    st.builds(
        _spoiled, st.integers(0, 200), st.integers(0, 255), st.sampled_from(sorted(_SEALED)), st.none() | _COLUMNS
    ),
    cases=150,
)
def envelopes(envelope: Envelope) -> None:
    async def opened() -> bytearray:
        return await open_token(envelope, LocalKeys(parse_master(MASTER)), KeyServiceTransport())

    try:
        token = asyncio.run(opened())
    except UnwrapFailed as error:
        assert not str(error).startswith("unexpected"), error
        assert TOKEN not in str(error)
    else:
        assert bytes(token) == TOKEN.encode()
