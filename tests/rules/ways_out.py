"""Each connection with TLS that a worker makes, made once: it returns why it came to nothing, or an empty text."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
from pydantic import SecretStr

from app.core import http
from app.core.errors import SinkUnavailable, UnwrapFailed
from app.gitops.client import Client, PollFailed
from app.kms.transport import KeyServiceTransport
from app.notify.settings import NotificationSettings
from app.notify.transport import NetworkTransport
from tests.support.argocd import Argo, document
from tests.support.forward_proxy import ForwardProxy
from tests.support.http_server import Receiver, Reply
from tests.support.key_services import CANARY, KEY, KEY_TEXT, SECRET, answer, configured
from tests.support.outcome import LOOPBACK, outcome
from tests.support.outcome import configured as receivers
from tests.support.smtp_server import SmtpServer
from tests.support.tls import Authority
from tests.support.waiting import HUNG

HOST = "127.0.0.1"
#: A name that nobody looks up but a proxy.
BEHIND = "hooks.no-such-domain.invalid"


class Given(NamedTuple):
    """What the server shows, who is trusted, and where variables are set."""

    shown: ssl.SSLContext
    trusted: Authority
    env: pytest.MonkeyPatch

    def set(self, **variables: str) -> None:
        """Set variables."""
        for name, value in variables.items():
            self.env.setenv(name, value)

    def trust_by_the_system(self) -> None:
        """Have the authority be one of the system's."""
        self.set(SSL_CERT_FILE=str(self.trusted.file))
        http.system_context.cache_clear()


Way = Callable[[Given], str]


def _sink(given: Given, url: str, receiver: Receiver, more: Mapping[str, str]) -> str:
    given.set(SB_NOTIFICATION_CA_BUNDLE=str(given.trusted.file))
    (target,) = receivers(given.env, {**LOOPBACK, url: f"{receiver.url}/hook", **more})
    return outcome(target)


def sink(url: str, body: bytes = b"ok", status: int = 200, **more: str) -> Way:
    """Return the way of a sink whose receiver is at the URL of this variable."""

    def way(given: Given) -> str:
        with Receiver(Reply(status, body), tls=given.shown) as receiver:
            ended = _sink(given, f"SB_NOTIFICATION_{url}", receiver, more)
        return _judged("" if ended == "delivered" else ended, len(receiver.seen))

    return way


def mail(tls: str) -> Way:
    """Return the way of mail."""

    def way(given: Given) -> str:
        given.set(SB_NOTIFICATION_CA_BUNDLE=str(given.trusted.file))
        server = SmtpServer(tls=given.shown, implicit=tls == "implicit")
        server.start()
        names = {"HOST": HOST, "PORT": str(server.port), "FROM": "a@example.org", "TO": "b@example.org", "TLS": tls}
        own = {f"SB_NOTIFICATION_EMAIL_{name}": value for name, value in names.items()}
        try:
            (target,) = receivers(given.env, {**LOOPBACK, **own})
            ended = outcome(target)
        finally:
            server.stop()
        return _judged("" if ended == "delivered" else ended, len(server.encrypted))

    return way


def apprise(given: Given, query: str = "") -> str:
    """Go by the library, which has TLS of its own."""
    given.set(REQUESTS_CA_BUNDLE=str(given.trusted.file))
    with Receiver(tls=given.shown) as receiver:
        env = {**LOOPBACK, "SB_NOTIFICATION_APPRISE_URLS": f"jsons://{HOST}:{receiver.port}/x{query}"}
        (target,) = receivers(given.env, env)
        ended = outcome(target)
    return _judged("" if ended == "delivered" else ended, len(receiver.seen))


def heartbeat(given: Given) -> str:
    """GET the dead man's switch."""
    given.set(SB_NOTIFICATION_CA_BUNDLE=str(given.trusted.file), **LOOPBACK)

    async def get(transport: NetworkTransport) -> None:
        await transport.get(SecretStr(receiver.url))

    with Receiver(tls=given.shown) as receiver:
        ended = _sent(get)
    return _judged(ended, len(receiver.seen))


def proxy(given: Given) -> str:
    """Go through a proxy that speaks TLS to a receiver that is fine."""
    given.trust_by_the_system()
    with (
        Receiver(tls=given.trusted.server(BEHIND)) as receiver,
        ForwardProxy({BEHIND: receiver.port}, tls=given.shown) as between,
    ):
        given.set(SB_EGRESS_PROXY_URL=between.url)
        ended = _sent(lambda transport: transport.post(SecretStr(f"https://{BEHIND}/"), b"{}", {}))
    return _judged(ended, len(between.asked) + len(receiver.seen))


def behind_a_proxy(given: Given) -> str:
    """Go through a proxy to a receiver."""
    given.trust_by_the_system()
    with Receiver(tls=given.shown) as receiver, ForwardProxy({BEHIND: receiver.port}) as between:
        given.set(SB_EGRESS_PROXY_URL=between.url)
        ended = _sent(lambda transport: transport.post(SecretStr(f"https://{BEHIND}/"), b"{}", {}))
    return _judged(ended, len(receiver.seen))


def argocd(*, own: bool, name: str | None = None) -> Way:
    """Return the way to an ArgoCD: by `own` authorities of its row, or the system's; verified as `name` if given."""

    def way(given: Given) -> str:
        given.trust_by_the_system()
        pem = given.trusted.pem if own else None
        with Receiver(Argo({"app": document("app")}), tls=given.shown) as server:

            async def ask() -> None:
                token = bytearray(b"canary-argocd-token")
                client = Client(server.url, token, ca_pem=pem, server_name=name, deadline=HUNG, connections=1)
                try:
                    await client.application("app", {})
                finally:
                    await client.close()

            try:
                asyncio.run(ask())
            except PollFailed as failed:
                return _judged(failed.text, len(server.seen))
        return _judged("", len(server.seen))

    return way


def vault(given: Given) -> str:
    """Have Vault unwrap a key."""
    with Receiver(answer(200, data={"plaintext": KEY_TEXT}), tls=given.shown) as server:
        return _unwrapped(
            given,
            server,
            SB_KMS_BACKEND="vault-transit",
            SB_KMS_VAULT_ADDR=server.url,
            SB_KMS_VAULT_TOKEN=CANARY,
            SB_KMS_VAULT_KEY="k",
            SB_KMS_VAULT_CACERT=str(given.trusted.file),
        )


def aws(given: Given) -> str:
    """Have AWS unwrap a key; its token service and its logins go by the same transport."""
    with Receiver(answer(200, Plaintext=KEY_TEXT), tls=given.shown) as server:
        return _unwrapped(
            given,
            server,
            SB_KMS_BACKEND="aws-kms",
            SB_KMS_AWS_REGION="eu-central-1",
            SB_KMS_AWS_KEY_ID="alias/sb",
            SB_KMS_AWS_ENDPOINT=server.url,
            AWS_ACCESS_KEY_ID="AKIDEXAMPLE",
            AWS_SECRET_ACCESS_KEY=SECRET,
            AWS_CA_BUNDLE=str(given.trusted.file),
        )


def traces(given: Given) -> str:
    """Send spans to a collector."""
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - 15 MiB, and only here
    from opentelemetry.sdk.trace.export import SpanExportResult  # noqa: PLC0415

    from app.tracing.otel import _Exporter  # noqa: PLC0415

    with Receiver(tls=given.shown) as collector:
        given.set(
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_EXPORTER_OTLP_CERTIFICATE=str(given.trusted.file),
            OTEL_EXPORTER_OTLP_TIMEOUT="3",
        )
        exporter = _Exporter("")
        span = TracerProvider(shutdown_on_exit=False).get_tracer("x").start_span("x")
        span.end()
        sent = exporter.export([span]) is SpanExportResult.SUCCESS  # type: ignore[list-item]
        exporter.shutdown()
    return _judged("" if sent else exporter._session.reason, len(collector.seen))


def _unwrapped(given: Given, server: Receiver, **variables: str) -> str:
    settings = configured(given.env, **variables)
    assert list(settings.key_problems(dev=False)) == []

    async def unwrap() -> bytearray:
        transport = KeyServiceTransport(settings.key_context, deadline=HUNG)
        try:
            return await settings.keys.unwrap(b"vault:v1:c2VhbGVk", "whatever", transport)
        finally:
            await transport.close()

    try:
        assert asyncio.run(unwrap()) == KEY
    except UnwrapFailed as failed:
        return _judged(str(failed), len(server.seen))
    return _judged("", len(server.seen))


def _sent(send: Callable[[NetworkTransport], Coroutine[Any, Any, Any]]) -> str:
    async def once() -> None:
        transport = NetworkTransport(NotificationSettings.read())
        try:
            async with asyncio.timeout(timedelta(seconds=HUNG).total_seconds()):
                await send(transport)
        finally:
            await transport.close()

    try:
        asyncio.run(once())
    except SinkUnavailable as error:
        return f"unavailable {error.fault}"
    return ""


def _judged(refused: str, arrived: int) -> str:
    """Return why it was refused; a server that is refused has got nothing, and another one something."""
    assert bool(arrived) == (not refused), (refused, arrived)
    return refused
