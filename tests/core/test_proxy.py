"""The proxy that is set: every way out takes it, what it may lead to is judged, and it is told apart from receivers."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import SecretStr

from app.core import http
from app.core.egress import EgressSettings, is_name
from app.core.errors import SinkRejected, SinkUnavailable, UnwrapFailed
from app.gitops.client import Client, PollFailed
from app.gitops.model import PollOutcome
from app.kms.transport import KeyServiceTransport, Request
from app.notify.settings import NotificationSettings
from app.notify.transport import NetworkTransport
from tests.support import http_server
from tests.support.forward_proxy import ForwardProxy, tinyproxy
from tests.support.http_server import Receiver, Reply, Rude
from tests.support.tls import Authority
from tests.support.waiting import HUNG, eventually

#: A name that only the proxy can look up.
HOST = "hooks.no-such-domain.invalid"
#: For tests in which all is on the loopback interface, which is not led to by a proxy otherwise.
NOTHING_SPARED = "spared.invalid"

Ask = Callable[[str, str], Coroutine[Any, Any, None]]


async def sinks(url: str, pem: str) -> None:
    del pem
    transport = NetworkTransport(NotificationSettings.read())
    try:
        for _ in range(2):
            assert (await transport.post(SecretStr(url), b"{}", {})).status == 200
    finally:
        await transport.close()


async def key_services(url: str, pem: str) -> None:
    transport = KeyServiceTransport(http.tls_context(pem=pem), deadline=HUNG)
    try:
        for _ in range(2):
            assert (await transport.send("vault", lambda: Request("POST", url, {}))).status == 200
    finally:
        await transport.close()


async def argocd(url: str, pem: str, server_name: str | None = None) -> None:
    client = Client(url, bytearray(b"t"), ca_pem=pem, server_name=server_name, deadline=HUNG, connections=1)
    try:
        for _ in range(2):
            await client.application("app", {})
    except PollFailed as error:
        assert error.outcome is PollOutcome.SHAPE  # noqa: PT017 - it has answered, and that is enough
    finally:
        await client.close()


WAYS = pytest.mark.parametrize("ask", [sinks, key_services, argocd])


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SB_NOTIFICATION_CA_BUNDLE", str(authority.file))
    return authority


@pytest.fixture
def receiver(authority: Authority) -> Iterator[Receiver]:
    with Receiver(Reply(200, b"{}"), tls=authority.server(HOST)) as server:
        yield server


@WAYS
def test_every_way_out_takes_the_proxy(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, receiver: Receiver, ask: Ask
) -> None:
    """The name is the proxy's to look up, TLS ends at the host, and a tunnel is kept for the next request."""
    with ForwardProxy({HOST: receiver.port}, login="wor@ker:s3:cret") as proxy:
        monkeypatch.setenv("SB_EGRESS_PROXY_URL", proxy.url)
        asyncio.run(ask(f"https://{HOST}/hook", authority.pem))
        eventually(lambda: proxy.open == 0)
    assert receiver.seen
    assert proxy.asked == [f"{HOST}:443"]
    assert "/hook" not in "".join(proxy.heads)


@WAYS
def test_the_proxy_may_speak_tls(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, receiver: Receiver, ask: Ask
) -> None:
    monkeypatch.setattr("app.core.http.system_context", lambda: http.tls_context(pem=authority.pem))
    with ForwardProxy({HOST: receiver.port}, tls=authority.server()) as proxy:
        monkeypatch.setenv("SB_EGRESS_PROXY_URL", proxy.url)
        asyncio.run(ask(f"https://{HOST}/hook", authority.pem))
    assert proxy.asked == [f"{HOST}:443"]


@WAYS
def test_a_real_proxy_is_taken(monkeypatch: pytest.MonkeyPatch, authority: Authority, tmp_path: Path, ask: Ask) -> None:
    monkeypatch.setenv("SB_NOTIFICATION_ALLOWED_NETWORKS", "127.0.0.0/8")
    monkeypatch.setenv("SB_EGRESS_NO_PROXY", NOTHING_SPARED)
    with tinyproxy(tmp_path) as (url, log), Receiver(Reply(200, b"{}"), tls=authority.server()) as server:
        monkeypatch.setenv("SB_EGRESS_PROXY_URL", url)
        asyncio.run(ask(server.url, authority.pem))
        assert server.seen
        eventually(lambda: f"CONNECT 127.0.0.1:{server.port}" in log.read_text())


def test_the_name_that_argocd_is_to_be_verified_by_holds_in_a_tunnel(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, receiver: Receiver
) -> None:
    with ForwardProxy({"argo.no-such-domain.invalid": receiver.port}) as proxy:
        monkeypatch.setenv("SB_EGRESS_PROXY_URL", proxy.url)
        url = "https://argo.no-such-domain.invalid"
        with pytest.raises(PollFailed) as failed:
            asyncio.run(_application(url, authority.pem, None))
        assert failed.value.text.endswith("cannot be reached (tls)")
        assert receiver.seen == []
        asyncio.run(argocd(url, authority.pem, HOST))
        assert receiver.seen


async def _application(url: str, pem: str, server_name: str | None) -> None:
    client = Client(url, bytearray(b"t"), ca_pem=pem, server_name=server_name, deadline=HUNG, connections=1)
    try:
        await client.application("app", {})
    finally:
        await client.close()


def failures(pem: str, url: str = f"https://{HOST}/") -> tuple[str, str, str]:
    """Return how a sink, a key service and an ArgoCD fail at this URL."""
    with pytest.raises((SinkUnavailable, SinkRejected)) as sink:
        asyncio.run(sinks(url, pem))
    with pytest.raises(UnwrapFailed) as service:
        asyncio.run(key_services(url, pem))
    with pytest.raises(PollFailed) as poll:
        asyncio.run(_application(url, pem, None))
    texts = str(sink.value), str(service.value), poll.value.text
    assert not any(secret in "".join(texts) for secret in ("canary", "s3cret", "127.0.0.1", HOST))
    return texts


@pytest.mark.parametrize("status", [301, 403, 407, 502, 503])
def test_a_proxy_that_refuses_is_told_apart_from_receivers(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, status: int
) -> None:
    with ForwardProxy(refuse=status) as proxy:
        monkeypatch.setenv("SB_EGRESS_PROXY_URL", proxy.url.replace("//", "//worker:s3cret@"))
        sink, service, poll = failures(authority.pem)
        eventually(lambda: proxy.open == 0)
    assert sink == f"proxy {status}"
    assert service == "vault cannot be reached (proxy)"
    assert poll.endswith(f"cannot be reached (proxy {status})")


def test_a_proxy_that_is_not_there_is_told_apart_too(monkeypatch: pytest.MonkeyPatch, authority: Authority) -> None:
    for url in ("http://127.0.0.1:1", "http://proxy.no-such-domain.invalid:3128"):
        monkeypatch.setenv("SB_EGRESS_PROXY_URL", url)
        sink, service, poll = failures(authority.pem)
        assert (sink, service) == ("proxy", "vault cannot be reached (proxy)")
        assert poll.endswith("cannot be reached (proxy)")


@pytest.mark.parametrize(
    "established",
    [
        b"HTTP/1.1 200 OK\n\n",
        b"HTTP/1.1 200 OK\r\nX-A: b\n\r\n",
        b"HTTP/1.0 200\r\n\r\n",
        b"HTTP/1.1 299 OK\r\nContent-Length: 4\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    ],
)
def test_a_proxy_may_say_in_many_ways_that_there_is_a_tunnel(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, receiver: Receiver, established: bytes
) -> None:
    with ForwardProxy({HOST: receiver.port}, established=established) as proxy:
        monkeypatch.setenv("SB_EGRESS_PROXY_URL", proxy.url)
        asyncio.run(sinks(f"https://{HOST}/hook", authority.pem))
    assert receiver.seen


@pytest.mark.parametrize(
    "said",
    [b"HTTP/1.1 407 No\n\n", b"HTTP/1.1 407 No\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"],
)
def test_the_status_of_a_proxy_that_refuses_is_never_lost(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, said: bytes
) -> None:
    with Rude(http_server.body_that_breaks_off(said)) as proxy:
        monkeypatch.setenv("SB_EGRESS_PROXY_URL", proxy.url)
        assert failures(authority.pem)[0] == "proxy 407"


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 20",
        b"SSH-2.0-nope\r\n\r\n",
        b"a" * 100_000,
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 70_000 + b"\r\n\r\n",
    ],
    ids=range(7),
)
def test_a_proxy_that_makes_half_a_tunnel_makes_none(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, said: bytes
) -> None:
    with Rude(http_server.body_that_breaks_off(said)) as proxy:
        monkeypatch.setenv("SB_EGRESS_PROXY_URL", proxy.url)
        assert failures(authority.pem)[0] == "proxy"


def test_a_proxys_certificate_is_verified(monkeypatch: pytest.MonkeyPatch, authority: Authority) -> None:
    with ForwardProxy(tls=authority.server()) as proxy:
        monkeypatch.setenv("SB_EGRESS_PROXY_URL", proxy.url)
        assert failures(authority.pem)[0] == "proxy"
    assert proxy.asked == []


def test_receivers_behind_a_proxy_are_verified(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, receiver: Receiver
) -> None:
    other = "other.no-such-domain.invalid"
    with ForwardProxy({other: receiver.port}) as proxy:
        monkeypatch.setenv("SB_EGRESS_PROXY_URL", proxy.url)
        assert failures(authority.pem, f"https://{other}/")[0] == "tls"
    assert receiver.seen == []


@pytest.mark.parametrize(
    "found",
    [
        ["169.254.169.254"],
        ["93.184.216.34", "169.254.169.254"],  # which of them the proxy takes nobody knows
        ["fd00:ec2::254"],
        ["64:ff9b::169.254.169.254"],
    ],
)
def test_what_is_never_dialled_is_not_asked_of_a_proxy(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, found: list[str]
) -> None:
    monkeypatch.setenv("SB_NOTIFICATION_ALLOWED_NETWORKS", "0.0.0.0/0,::/0")
    real = socket.getaddrinfo

    def resolver(host: Any, *arguments: Any, **more: Any) -> Any:
        if host != HOST:
            return real(host, *arguments, **more)
        return [info for address in found for info in real(address, *arguments, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    with ForwardProxy({HOST: 1, found[0]: 1, f"[{found[0]}]": 1}) as proxy:
        monkeypatch.setenv("SB_EGRESS_PROXY_URL", proxy.url)
        address = f"[{found[-1]}]" if ":" in found[-1] else found[-1]
        for url in (f"https://{HOST}/", f"https://{address}/"):
            sink, service, poll = failures(authority.pem, url)
            assert (sink, service) == ("blocked_address", "vault cannot be reached (blocked_address)")
            assert poll.endswith("cannot be reached (blocked_address)")
    assert proxy.asked == []


@pytest.mark.parametrize(
    "host",
    [
        *("169.254.169.254.", "10.0.0.1.", "0251.0376.0251.0376.", "0xa9fea9fe.", "2852039166."),
        *("%31%36%39.254.169.254", "169.254.169.254%20", "169.254.169.254.."),
    ],
)
def test_what_a_proxy_may_take_for_an_address_is_not_asked_of_it(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, host: str
) -> None:
    """Such a host is unknown here, as a name is that only the proxy can look up."""
    with ForwardProxy(refuse=502) as proxy:
        monkeypatch.setenv("SB_EGRESS_PROXY_URL", proxy.url)
        assert failures(authority.pem, f"https://{host}/")[0] == "blocked_address"
    assert proxy.asked == []


@pytest.mark.parametrize("host", ["hooks", "_sip.a-b.example", "3com.example.", "1.2.3.0x7g", "xn--bcher-kva.example"])
def test_names_are_asked_of_a_proxy(host: str) -> None:
    assert is_name(host)


@WAYS
def test_a_resolver_that_hangs_leaves_names_to_the_proxy(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, receiver: Receiver, ask: Ask
) -> None:
    """Where nothing leads out but a proxy, names of the outside may be asked for in vain for a long time."""
    monkeypatch.setattr("app.core.dialling._PATIENCE", 0.1)
    real, over = socket.getaddrinfo, threading.Event()

    def resolver(host: Any, *arguments: Any, **more: Any) -> Any:
        if host == HOST:
            over.wait(HUNG)
        return real(host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    try:
        with ForwardProxy({HOST: receiver.port}) as proxy:
            monkeypatch.setenv("SB_EGRESS_PROXY_URL", proxy.url)
            asyncio.run(ask(f"https://{HOST}/", authority.pem))
        assert receiver.seen
    finally:
        over.set()


def test_a_receiver_in_a_closed_network_needs_it_allowed_behind_a_proxy_too(
    monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    monkeypatch.setenv("SB_EGRESS_NO_PROXY", NOTHING_SPARED)
    with ForwardProxy() as proxy, Receiver(Reply(200, b"{}"), tls=authority.server("localhost")) as server:
        proxy.hosts |= {"localhost": server.port, "10.9.8.7": server.port}
        monkeypatch.setenv("SB_EGRESS_PROXY_URL", proxy.url)
        for url in ("https://localhost/", "https://10.9.8.7/"):
            with pytest.raises(SinkRejected, match="blocked_address"):
                asyncio.run(sinks(url, authority.pem))
        assert proxy.asked == []
        monkeypatch.setenv("SB_NOTIFICATION_ALLOWED_NETWORKS", "127.0.0.0/8,::1/128")
        asyncio.run(sinks("https://localhost/", authority.pem))
        assert proxy.asked == ["localhost:443"]


def test_a_proxy_at_an_address_that_is_never_dialled_is_not_dialled(
    monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    """A name that was right at boot can be made to point there later."""
    real = socket.getaddrinfo
    led_to = {"proxy.example": "169.254.169.254"}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: real(led_to.get(host, host), *rest, **more))
    monkeypatch.setenv("SB_EGRESS_PROXY_URL", "http://proxy.example:3128")
    assert failures(authority.pem)[0] == "proxy"


@WAYS
def test_what_is_spared_is_dialled(monkeypatch: pytest.MonkeyPatch, authority: Authority, ask: Ask) -> None:
    """By default this very machine, whose services no proxy could lead to."""
    monkeypatch.setenv("SB_NOTIFICATION_ALLOWED_NETWORKS", "127.0.0.0/8")
    monkeypatch.setenv("SB_EGRESS_PROXY_URL", "http://127.0.0.1:1")
    with Receiver(Reply(200, b"{}"), tls=authority.server()) as server:
        asyncio.run(ask(server.url, authority.pem))
        assert server.seen


@WAYS
def test_what_is_in_the_clear_is_dialled(monkeypatch: pytest.MonkeyPatch, authority: Authority, ask: Ask) -> None:
    monkeypatch.setenv("SB_NOTIFICATION_ALLOWED_NETWORKS", "127.0.0.0/8")
    monkeypatch.setenv("SB_EGRESS_NO_PROXY", NOTHING_SPARED)
    monkeypatch.setenv("SB_EGRESS_PROXY_URL", "http://127.0.0.1:1")
    with Receiver(Reply(200, b"{}")) as server:
        asyncio.run(ask(server.url, authority.pem))
        assert server.seen


def test_credentials_are_asked_for_without_the_proxy(monkeypatch: pytest.MonkeyPatch, authority: Authority) -> None:
    monkeypatch.setenv("SB_EGRESS_NO_PROXY", NOTHING_SPARED)
    monkeypatch.setenv("SB_EGRESS_PROXY_URL", "http://127.0.0.1:1")

    async def credentials(url: str) -> int:
        transport = KeyServiceTransport(http.tls_context(pem=authority.pem))
        try:
            return (await transport.send("metadata", lambda: Request("GET", url, {}, credentials=True))).status
        finally:
            await transport.close()

    with Receiver(Reply(200, b"{}"), tls=authority.server()) as server:
        assert asyncio.run(credentials(server.url)) == 200


@pytest.mark.parametrize(
    ("spared", "host", "expected"),
    [
        (None, "localhost", True),
        (None, "127.9.9.9", True),
        (None, "::1", True),
        (None, "vault.vault.svc", True),
        (None, "VAULT.vault.svc.cluster.local.", True),
        (None, "10.0.0.1", False),
        (None, "hooks.slack.com", False),
        ("example.com", "example.com", True),
        ("example.com", "a.b.Example.COM", True),
        ("example.com", "notexample.com", False),
        (".example.com", "a.example.com", True),
        (".example.com", "example.com", False),
        ("10.0.0.0/8, fd00::/8", "10.1.2.3", True),
        ("10.0.0.0/8, fd00::/8", "fd12::1", True),
        ("10.0.0.0/8, fd00::/8", "11.0.0.1", False),
        ("192.0.2.7,[2001:db8::1]", "192.0.2.7", True),
        ("192.0.2.7,[2001:db8::1]", "2001:db8::1", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("127.0.0.0/8", "localhost", False),
    ],
)
def test_hosts_are_spared_by_name_or_address(
    monkeypatch: pytest.MonkeyPatch, spared: str | None, host: str, expected: bool
) -> None:
    monkeypatch.setenv("SB_EGRESS_PROXY_URL", "http://proxy.example:3128")
    if spared is not None:
        monkeypatch.setenv("SB_EGRESS_NO_PROXY", spared)
    proxy = EgressSettings.read().proxy
    assert proxy is not None
    assert proxy.spares(host) is expected


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "login"),
    [
        ("http://proxy.example:3128", "http", "proxy.example", 3128, ""),
        ("http://proxy.example/", "http", "proxy.example", 80, ""),
        ("https://[2001:db8::1]", "https", "2001:db8::1", 443, ""),
        ("http://user@proxy.example:1", "http", "proxy.example", 1, "Basic dXNlcjo="),
        ("http://u%40x:p%3A%2F@proxy.example:1", "http", "proxy.example", 1, "Basic dUB4OnA6Lw=="),
    ],
)
def test_a_proxys_url_is_read(  # noqa: PLR0913, PLR0917 - what it says
    monkeypatch: pytest.MonkeyPatch, url: str, scheme: str, host: str, port: int, login: str
) -> None:
    monkeypatch.setenv("SB_EGRESS_PROXY_URL", url)
    proxy = EgressSettings.read().proxy
    assert proxy is not None
    assert proxy[:4] == (scheme, host, port, login)
    assert "proxy.example" not in repr(EgressSettings.read())


def test_without_the_setting_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert EgressSettings.read().proxy is None


@pytest.mark.parametrize("silent", ["proxy", "receiver"])
def test_attempts_that_hang_in_a_proxy_leave_nothing(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, silent: str
) -> None:
    threads = threading.active_count()

    async def cut() -> None:
        transport = NetworkTransport(NotificationSettings.read())
        for _ in range(50):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await transport.post(SecretStr(f"https://{HOST}/"), b"{}", {})
        await transport.close()
        assert [found for found in psutil.Process().net_connections("tcp") if _to(found, proxy.port)] == []

    refuse = -1 if silent == "proxy" else 0
    with socket.create_server(("127.0.0.1", 0)) as deaf, ForwardProxy(refuse=refuse) as proxy:
        proxy.hosts[HOST] = deaf.getsockname()[1]
        monkeypatch.setenv("SB_EGRESS_PROXY_URL", proxy.url)
        asyncio.run(cut())
        eventually(lambda: proxy.open == 0)
    eventually(lambda: threading.active_count() <= threads)


def _to(found: Any, port: int) -> bool:
    return bool(found.raddr) and found.raddr.port == port


def test_nothing_of_a_proxy_is_logged(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for quiet in ("httpx", "asyncio"):
        logging.getLogger(quiet).setLevel(logging.CRITICAL)  # as the worker does
    with ForwardProxy(refuse=407, login="canary:canary") as proxy:
        monkeypatch.setenv("SB_EGRESS_PROXY_URL", proxy.url)
        failures(authority.pem)
    assert "canary" not in caplog.text
