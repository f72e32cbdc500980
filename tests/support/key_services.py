"""Key managers asked as a run asks them, and a data key to be had."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import SecretStr

from app.core import http
from app.core.errors import UnwrapFailed
from app.kms import aws, vault
from app.kms.envelope import KeyManager
from app.kms.settings import KmsSettings
from app.kms.transport import KeyServiceTransport
from tests.support.http_server import Reply, Seen
from tests.support.waiting import HUNG

KEY = bytes(range(100, 132))
KEY_TEXT = base64.b64encode(KEY).decode()
SEALED = b"vault:v3:c2VhbGVk"
CANARY = "canary-token"
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
WHEN = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
#: Seconds before a request is sent again here.
SOON = 0.01


def answer(status: int, headers: Mapping[str, str] | None = None, **content: Any) -> Reply:
    """Return an answer in JSON."""
    return Reply(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})


class InTurn:
    """Answers in the order given, the last one for ever."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = list(replies)

    def __call__(self, seen: Seen) -> Reply:
        del seen
        return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]


def unwrap(
    keys: KeyManager, wrapped: bytes = SEALED, *, times: int = 1, pem: str | None = None, seconds: float = HUNG
) -> list[bytearray]:
    """Unwrap so many times at once, in one run."""

    async def run() -> list[bytearray]:
        context = http.tls_context(pem=pem) if pem else None
        transport = KeyServiceTransport(context, deadline=seconds, first_wait=SOON)
        try:
            return await asyncio.gather(*(keys.unwrap(wrapped, "whatever", transport) for _ in range(times)))
        finally:
            await transport.close()

    return asyncio.run(run())


def refusal(keys: KeyManager, wrapped: bytes = SEALED, *, seconds: float = HUNG) -> str:
    """Return why a key is not unwrapped; the text leaks nothing."""
    with pytest.raises(UnwrapFailed) as refused:
        unwrap(keys, wrapped, seconds=seconds)
    assert CANARY not in repr(refused.value)
    assert refused.value.__cause__ is None
    return str(refused.value)


def configured(monkeypatch: pytest.MonkeyPatch, **variables: str) -> KmsSettings:
    """Return the settings that these variables make."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return KmsSettings.read()


def vault_at(address: str, options: vault.Options | None = None, namespace: str = "") -> vault.VaultKeys:
    """Return a Vault that is asked with a token."""
    place = vault.Place(address.rstrip("/"), "transit", "k", namespace)
    return vault.VaultKeys(place, token=SecretStr(CANARY), options=options)


def kms(
    url: str, environ: Mapping[str, str] | None = None, clock: Callable[[], datetime] = lambda: WHEN
) -> aws.AwsKeys:
    """Return an AWS that is asked at this URL, with an access key unless told otherwise."""
    environ = environ or {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": SECRET}
    return aws.AwsKeys(aws.Place("eu-central-1", "alias/sb", url), environ, clock)
