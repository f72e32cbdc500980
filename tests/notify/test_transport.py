"""The way out, against servers that misbehave: one deadline, bounded answers, verified TLS, and no leaks."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import SecretStr

from app.core.errors import SinkRejected, SinkUnavailable
from app.notify.delivery.send import attempt
from app.notify.routing import Target
from app.notify.settings import NotificationSettings
from app.notify.transport import MOST_BODY, NetworkTransport, ThreadLoops
from tests.sinks.test_email import to as mail_to
from tests.support import http_server
from tests.support.http_server import Receiver, Reply, Rude, Seen
from tests.support.outcome import LOOPBACK, NOTE, configured, outcome
from tests.support.smtp_server import SmtpServer
from tests.support.tls import Authority
from tests.support.waiting import HUNG, eventually

#: Attempts that are cut one after the other.
MORE_THAN_A_POOL = 16

Treat = Callable[[socket.socket, threading.Event], None]


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Target]:
    """Return a function that configures a webhook to a URL."""
    return lambda url: configured(monkeypatch, {**LOOPBACK, "SB_NOTIFICATION_WEBHOOK_URL": url})[0]


@pytest.mark.parametrize("treat", [http_server.header_drip, http_server.body_drip, http_server.silence])
def test_a_server_that_stalls_is_cut_off(webhook: Callable[[str], Target], treat: Treat) -> None:
    with Rude(treat) as server:
        assert outcome(webhook(server.url), seconds=0.4) == "unavailable timeout"


@pytest.mark.parametrize(
    ("treat", "expected"),
    [
        (http_server.hang_up, "unavailable "),  # protocol or connect: whichever the system sees first
        (http_server.reset, "unavailable connect"),
        (http_server.nonsense, "unavailable protocol"),
    ],
)
def test_a_server_that_breaks_off_is_transient(webhook: Callable[[str], Target], treat: Treat, expected: str) -> None:
    with Rude(treat) as server:
        assert outcome(webhook(server.url)).startswith(expected)


def test_nobody_there_is_transient(webhook: Callable[[str], Target]) -> None:
    assert outcome(webhook("http://127.0.0.1:1/")) == "unavailable connect"


def mail_server(stack: ExitStack) -> SmtpServer:
    server = SmtpServer()
    server.start()
    stack.callback(server.stop)
    return server


@pytest.mark.parametrize("sink", ["webhook", "email"])
def test_an_address_that_is_silent_does_not_keep_the_next_one_from_its_turn(
    monkeypatch: pytest.MonkeyPatch, sink: str
) -> None:
    """A name has often an IPv6 address as well, which some networks swallow."""
    monkeypatch.setattr("app.core.dialling._PATIENCE", 0.2)

    async def both(*_: object) -> list[str]:
        return ["127.0.0.2", "127.0.0.1"]

    monkeypatch.setattr("app.core.egress.look_up", both)
    with ExitStack() as stack:
        receiver = stack.enter_context(Receiver()) if sink == "webhook" else mail_server(stack)
        silent = stack.enter_context(closing(socket.socket()))
        silent.bind(("127.0.0.2", receiver.port))
        silent.listen(0)
        for _ in range(4):  # its queue is full: the kernel drops who knocks
            knock = stack.enter_context(closing(socket.socket()))
            knock.setblocking(False)
            knock.connect_ex(("127.0.0.2", receiver.port))
        url = {"SB_NOTIFICATION_WEBHOOK_URL": f"http://localhost:{receiver.port}/"}
        env = (
            url
            if sink == "webhook"
            else {
                **mail_to(receiver.port, TLS="none", ALLOW_PLAINTEXT="true"),
                "SB_NOTIFICATION_EMAIL_HOST": "localhost",
            }
        )
        (target,) = configured(monkeypatch, {**LOOPBACK, **env})
        assert outcome(target) == "delivered"


def test_an_endless_answer_is_read_to_64_kib(webhook: Callable[[str], Target]) -> None:
    with Rude(http_server.endless) as server:
        assert outcome(webhook(server.url)) == "delivered"

    async def read() -> int:
        network = NetworkTransport(NotificationSettings.read())
        answer = await network.post(SecretStr(server.url), b"", {})
        await network.close()
        return len(answer.body)

    with Rude(http_server.endless) as server:
        assert asyncio.run(read()) == MOST_BODY


@pytest.mark.parametrize("sink", ["WEBHOOK", "SLACK", "DISCORD", "TEAMS"])
@pytest.mark.parametrize(
    "treat",
    [
        http_server.body_that_breaks_off(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}"),
        http_server.body_that_breaks_off(b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}"),
        http_server.body_that_breaks_off(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"),
        http_server.body_drip,
    ],
    ids=["short", "chunk", "nonsense", "drip"],
)
def test_a_success_is_one_whatever_becomes_of_its_body(
    monkeypatch: pytest.MonkeyPatch, sink: str, treat: Treat
) -> None:
    """The receiver has it: sent again until it were given up, it would arrive a hundred times."""
    monkeypatch.setattr("app.notify.transport._BODY_PATIENCE", 0.2)
    with Rude(treat) as server:
        (target,) = configured(monkeypatch, {**LOOPBACK, f"SB_NOTIFICATION_{sink}_URL": server.url})
        assert outcome(target) == "delivered"


def test_a_refusal_is_one_whatever_becomes_of_its_body(webhook: Callable[[str], Target]) -> None:
    head = b"HTTP/1.1 404 Not Found\r\nContent-Length: 10\r\n\r\n{}"
    with Rude(http_server.body_that_breaks_off(head)) as server:
        assert outcome(webhook(server.url)) == "rejected client_error 404"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("tls", [False, True])
def test_the_go_workers_variable_leads_to_private_receivers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tls: bool, host: str
) -> None:
    """By http:// too, and with no network allowed; our own variable does not."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("SB_NOTIFICATION_CA_BUNDLE", str(authority.file))
    with Receiver(tls=authority.server(host) if tls else None) as receiver:
        url = receiver.url.replace("127.0.0.1", host)
        with monkeypatch.context() as patch:
            (target,) = configured(patch, {"SB_WORKER_WEBHOOK_URL": url})
            assert outcome(target) == "delivered"
        (target,) = configured(monkeypatch, {"SB_NOTIFICATION_WEBHOOK_URL": url})
        assert outcome(target) == "rejected blocked_address"
        assert len(receiver.seen) == 1


@pytest.mark.parametrize(
    ("path", "arrives"),
    [
        ("/a b/ü?q=ü x", "/a%20b/%C3%BC?q=%C3%BC%20x"),
        ("/a%2Fb/c;d=1?token=a%2Fb+c", "/a%2Fb/c;d=1?token=a%2Fb+c"),
        ("#fragment", "/"),
        ("", "/"),
    ],
)
def test_a_url_is_escaped_where_go_escapes_it(monkeypatch: pytest.MonkeyPatch, path: str, arrives: str) -> None:
    with Receiver() as receiver:
        url = receiver.url.replace("//", "//wor%40ker:s3cret@") + path
        (target,) = configured(monkeypatch, {"SB_WORKER_WEBHOOK_URL": url})
        assert outcome(target) == "delivered"
    (seen,) = receiver.seen
    assert seen.path == arrives
    assert seen.headers["authorization"] == "Basic d29yQGtlcjpzM2NyZXQ="


def test_the_go_workers_variable_leads_to_no_metadata_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name can be made to point there at any time."""
    real = socket.getaddrinfo
    led_to = {"bridge.monitoring": "169.254.169.254"}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: real(led_to.get(host, host), *rest, **more))
    (target,) = configured(monkeypatch, {"SB_WORKER_WEBHOOK_URL": "http://bridge.monitoring:9093"})
    assert outcome(target) == "rejected blocked_address"


def test_no_connection_to_a_private_receiver_serves_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def both(url: str) -> None:
        network = NetworkTransport(NotificationSettings.read())
        try:
            assert (await network.post(SecretStr(url), b"", {}, private=True)).status == 200
            with pytest.raises(SinkRejected, match="blocked_address"):
                await network.post(SecretStr(url), b"", {})
        finally:
            await network.close()

    with Receiver() as receiver:
        asyncio.run(both(receiver.url))


def test_redirects_are_not_followed(webhook: Callable[[str], Target]) -> None:
    with Receiver() as inner:
        away = Reply(302, headers={"Location": inner.url})
        with Receiver(away) as outer:
            assert outcome(webhook(outer.url)) == "rejected client_error 302"
        assert inner.seen == []


def test_proxies_of_the_environment_are_not_asked(
    webhook: Callable[[str], Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Receiver() as proxy, Receiver() as real:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "https_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert outcome(webhook(real.url)) == "delivered"
        assert (len(proxy.seen), len(real.seen)) == (0, 1)


def test_a_closed_network_is_not_dialled(webhook: Callable[[str], Target], monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as receiver:
        target = webhook(f"http://localhost:{receiver.port}/")
        monkeypatch.setenv("SB_NOTIFICATION_ALLOWED_NETWORKS", "10.0.0.0/8")
        assert outcome(target) == "rejected blocked_address"
        assert receiver.seen == []


def test_a_name_that_is_not_known_is_transient(webhook: Callable[[str], Target]) -> None:
    assert outcome(webhook("https://no-such-host.invalid/")) == "unavailable dns"


def test_certificates_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    with Receiver(tls=authority.server()) as right, Receiver(tls=authority.server("example.org")) as wrong:
        (target,) = configured(monkeypatch, {**LOOPBACK, "SB_NOTIFICATION_WEBHOOK_URL": right.url})
        assert outcome(target) == "unavailable tls"
        monkeypatch.setenv("SB_NOTIFICATION_CA_BUNDLE", str(authority.file))
        assert outcome(target) == "delivered"
        (target,) = configured(monkeypatch, {"SB_NOTIFICATION_WEBHOOK_URL": wrong.url})
        assert outcome(target) == "unavailable tls"
        assert (len(right.seen), len(wrong.seen)) == (1, 0)


def test_connections_are_kept_between_attempts(webhook: Callable[[str], Target]) -> None:
    ports: set[str] = set()

    def answer(seen: Seen) -> Reply:
        return Reply(200, seen.headers.get("connection", "").encode())

    async def several(target: Target) -> None:
        network = NetworkTransport(NotificationSettings.read())
        for _ in range(20):
            await attempt(target, NOTE, network, HUNG)
            ports.update(_established(receiver.port))
        await network.close()

    with Receiver(answer) as receiver:
        asyncio.run(several(webhook(receiver.url)))
        assert len(receiver.seen) == 20
    assert len(ports) <= 1


@pytest.mark.parametrize(
    ("sink", "treat"),
    [
        ("webhook", http_server.header_drip),
        ("webhook", http_server.body_drip),
        ("webhook", http_server.silence),
        ("webhook in TLS", http_server.silence),
        ("email", http_server.banner_drip),
        ("email", http_server.silence),
    ],
)
def test_a_thousand_hanging_attempts_leak_nothing(monkeypatch: pytest.MonkeyPatch, sink: str, treat: Treat) -> None:
    """Each ends by its deadline. One that does before the server has accepted its connection is not counted."""
    threads = threading.active_count()

    def cut(lanes: ThreadLoops) -> None:
        with pytest.raises(SinkUnavailable, match="timeout"):
            lanes(lambda transport: attempt(target, NOTE, transport, 0.05))

    def many(_lane: int) -> None:
        with closing(ThreadLoops(NotificationSettings.read())) as lanes:
            for _ in range(5000):
                if server.connections >= 1000:
                    break
                cut(lanes)

    with Rude(treat) as server:
        url = server.url.replace("http:", "https:") if "TLS" in sink else server.url
        env = mail_to(server.port) if sink == "email" else {"SB_NOTIFICATION_WEBHOOK_URL": url}
        (target,) = configured(monkeypatch, {**LOOPBACK, **env})
        with ThreadPoolExecutor(8) as pool:  # as many as a notifier has threads
            list(pool.map(many, range(8)))
        assert server.connections >= 1000
        assert _established(server.port) == set()
    eventually(lambda: threading.active_count() <= threads)


@pytest.mark.parametrize("treat", [http_server.header_drip, http_server.silence])
def test_attempts_that_were_cut_leave_room_for_others(
    webhook: Callable[[str], Target], monkeypatch: pytest.MonkeyPatch, treat: Treat
) -> None:
    """More attempts are cut than a pool has places, at each step of the loop; the next one still goes out."""

    async def cut_and_send(bad: Target, good: Target) -> None:
        network = NetworkTransport(NotificationSettings.read())
        for steps in range(30):
            for _ in range(MORE_THAN_A_POOL):
                cut = asyncio.create_task(attempt(bad, NOTE, network, HUNG))
                for _ in range(steps):
                    await asyncio.sleep(0)
                cut.cancel()
                with suppress(asyncio.CancelledError):
                    await cut
        await attempt(good, NOTE, network, HUNG)
        await network.close()

    with Rude(treat) as server, Receiver() as receiver:
        bad, good = webhook(server.url), webhook(receiver.url)
        asyncio.run(cut_and_send(bad, good))
        assert len(receiver.seen) == 1


def test_nothing_of_a_url_is_logged(webhook: Callable[[str], Target], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpx").setLevel(logging.CRITICAL)  # as app.logs does
    with Receiver(Reply(500)) as receiver:
        outcome(webhook(f"{receiver.url}/canary?token=canary"))
    outcome(webhook("http://127.0.0.1:1/canary"))
    assert "canary" not in caplog.text


def test_what_is_no_url_is_permanent(monkeypatch: pytest.MonkeyPatch) -> None:
    async def post() -> Any:
        network = NetworkTransport(NotificationSettings.read())
        try:
            return await network.post(SecretStr("ftp://127.0.0.1/x"), b"", {})
        finally:
            await network.close()

    with pytest.raises(SinkRejected, match="template"):
        asyncio.run(post())


def _established(port: int) -> set[str]:
    own = psutil.Process().net_connections("tcp")
    return {str(found.laddr.port) for found in own if found.raddr and found.raddr.port == port}


def test_an_attempt_that_does_not_end_is_left_behind(webhook: Callable[[str], Target]) -> None:
    never = asyncio.Event()

    async def send(*_: Any) -> None:
        while True:
            with suppress(asyncio.CancelledError):
                await never.wait()

    target = webhook("http://127.0.0.1:1/")
    stubborn = dataclasses.replace(target, sink=dataclasses.replace(target.sink, send=send))
    loops = ThreadLoops(NotificationSettings.read())
    with pytest.raises(SinkUnavailable, match="timeout"):
        loops(lambda transport: attempt(stubborn, NOTE, transport, 0.05))
    with pytest.raises(SinkUnavailable, match="connect"):  # the next one is not kept waiting
        loops(lambda transport: attempt(target, NOTE, transport, 5))
    loops.close()
