"""What may leave the process towards ArgoCD, whoever asks for it."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.core import http
from app.gitops.client import Client, NotAllowed, PollFailed, ReadOnly
from app.gitops.model import Endpoint, PollOutcome
from app.kms.envelope import Envelope
from tests.support.argocd import TOKEN, Argo, document
from tests.support.http_server import Receiver, Reply
from tests.support.tls import Authority
from tests.support.waiting import HUNG

PREFIX = "/argo"


def client(url: str, token: bytes = TOKEN.encode(), **columns: str | None) -> Client:
    given: dict[str, str | None] = {"ca_pem": None, "server_name": None, **columns}
    return Client(
        url, bytearray(token), ca_pem=given["ca_pem"], server_name=given["server_name"], deadline=HUNG, connections=2
    )


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/applications/app"),
        ("PUT", "/api/v1/applications/app"),
        ("PATCH", "/api/v1/applications/app"),
        ("DELETE", "/api/v1/applications/app"),
        ("HEAD", "/api/v1/applications/app"),
        ("get", "/api/v1/applications/app"),
        ("GET", "/api/v1/applications/app?refresh=normal"),
        ("GET", "/api/v1/applications/app?project=a&refresh=hard"),
        ("GET", "/api/v1/applications/app/sync"),
        ("GET", "/api/v1/applications/app/resource"),
        ("GET", "/api/v1/applications"),
        ("GET", "/api/v1/applications/"),
        ("GET", "/api/v1/session"),
        ("GET", "/"),
    ],
)
def test_the_transport_refuses_whatever_is_not_one_of_the_two_reads(method: str, path: str) -> None:
    async def ask(url: str) -> None:
        transport = ReadOnly(PREFIX, httpx.AsyncHTTPTransport(trust_env=False))
        async with transport:
            await transport.handle_async_request(httpx.Request(method, url + PREFIX + path))

    with Receiver(Reply(200)) as server:
        if method == "get":  # httpx itself writes methods in capitals
            asyncio.run(ask(server.url))
            assert [seen.method for seen in server.seen] == ["GET"]
            return
        with pytest.raises(NotAllowed):
            asyncio.run(ask(server.url))
        assert server.seen == []


def test_another_base_path_is_refused_as_well() -> None:
    async def ask(url: str) -> None:
        transport = ReadOnly(PREFIX, httpx.AsyncHTTPTransport(trust_env=False))
        await transport.handle_async_request(httpx.Request("GET", url + "/other/api/v1/applications/app"))

    with Receiver(Reply(200)) as server, pytest.raises(NotAllowed):
        asyncio.run(ask(server.url))


def read(client: Client, name: str = "app") -> object:
    async def run() -> object:
        try:
            return (await client.application(name, {}))[0]
        finally:
            await client.close()

    return asyncio.run(run())


def test_no_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    with Receiver(Argo({"app": document("app")})) as server:
        assert read(client(server.url))
    assert len(server.seen) == 1


def test_the_addresses_of_a_name_are_tried_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata service's is left out, and at the next one nobody is there."""
    real = socket.getaddrinfo

    def resolver(host: Any, *arguments: Any, **more: Any) -> Any:
        if host != "argocd.example":
            return real(host, *arguments, **more)
        found = ("169.254.169.254", "127.0.0.2", "127.0.0.1")
        return [info for address in found for info in real(address, *arguments, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    with Receiver(Argo({"app": document("app")})) as server:
        assert read(client(f"http://argocd.example:{server.port}"))
    assert len(server.seen) == 1


def test_no_redirect_is_followed() -> None:
    with Receiver(Reply(301, b"", {"Location": "/api/v1/applications/other"})) as server:
        with pytest.raises(PollFailed) as failed:
            read(client(server.url))
        assert (failed.value.outcome, len(server.seen)) == (PollOutcome.HTTP_ERROR, 1)


def test_tls_is_at_least_1_2_and_the_own_authority_is_the_only_one(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = http.tls_context(pem=authority.file.read_text())
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.cert_store_stats()["x509"] == 1
    old = authority.server()
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    with Receiver(Argo({"app": document("app")}), tls=old) as server:
        assert read(client(server.url, ca_pem=authority.file.read_text()))


def test_without_a_token_no_header_is_sent() -> None:
    with Receiver(Argo()) as server:
        with pytest.raises(PollFailed) as failed:
            read(client(server.url, b""))
        assert failed.value.outcome is PollOutcome.UNAUTHORIZED
        assert "authorization" not in server.seen[0].headers


def test_a_token_is_sent_as_its_bytes_are() -> None:
    token = "tøken-ключ-鍵".encode()
    with Receiver(Argo({"app": document("app")})) as server:
        with pytest.raises(PollFailed):
            read(client(server.url, token))
        assert server.seen[0].headers["authorization"].encode("latin-1") == b"Bearer " + token


@pytest.mark.parametrize("token", [b"a\nb", b"a\r\nX-A: b", b"a\x00", b"a\x7f"])
def test_a_token_that_would_be_another_header_is_refused(token: bytes) -> None:
    with pytest.raises(ValueError, match="the token has characters that no header can carry"):
        client("https://127.0.0.1:1", token)


def test_nothing_of_a_failure_is_in_an_exceptions_text_or_a_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with Receiver(Argo({"app": Reply(500, b"canary")})) as server:
        with pytest.raises(PollFailed) as failed:
            read(client(server.url))
        assert str(failed.value) == "http_error"
        assert "app" in failed.value.text
        assert "canary" not in failed.value.text
    assert TOKEN not in caplog.text


def test_an_endpoint_and_its_token_do_not_show_themselves() -> None:
    endpoint = Endpoint("id", "https://canary", "canary", "canary", Envelope(b"canary", b"canary", b"canary", "canary"))
    assert "canary" not in repr(endpoint)
    assert TOKEN not in repr(client("https://127.0.0.1:1"))
