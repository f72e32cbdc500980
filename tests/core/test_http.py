"""What all HTTP clients share: none of them has a memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from pydantic import SecretStr

from app.core.errors import UnwrapFailed
from app.gitops.client import Client, PollFailed
from app.kms.transport import KeyServiceTransport, Request
from app.notify.settings import NotificationSettings
from app.notify.transport import NetworkTransport
from tests.support.http_server import Receiver, Reply

#: Of one server, for every server of its domain and for every path, and as long as servers refuse requests for.
COOKIE = {"Set-Cookie": f"canary={'v' * 4000}; Domain=127.0.0.1; Path=/"}

Ask = Callable[[str, str], Coroutine[Any, Any, None]]


async def sinks(first: str, second: str) -> None:
    transport = NetworkTransport(NotificationSettings.read())
    for url in (first, second):
        await transport.post(SecretStr(url), b"{}", {})
    await transport.close()


async def key_services(first: str, second: str) -> None:
    transport = KeyServiceTransport()
    for url in (first, second):
        with suppress(UnwrapFailed):
            await transport.send("vault", partial(Request, "POST", url, {}))
    await transport.close()


async def argocd(first: str, second: str) -> None:
    del second
    client = Client(first, bytearray(b"t"), ca_pem=None, server_name=None, deadline=5, connections=1)
    for name in ("one", "two"):
        with suppress(PollFailed):
            await client.application(name, {})
    await client.close()


@pytest.mark.parametrize("ask", [sinks, key_services, argocd])
def test_no_client_takes_a_cookie_from_one_request_to_another(monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    monkeypatch.setenv("SB_NOTIFICATION_ALLOWED_NETWORKS", "127.0.0.0/8")
    with Receiver(Reply(200, b"{}", COOKIE)) as server:
        asyncio.run(ask(f"{server.url}/a", f"{server.url}/b"))
        assert len(server.seen) == 2
        assert [seen.headers.get("cookie") for seen in server.seen] == [None, None]
