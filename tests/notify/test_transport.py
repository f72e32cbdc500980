"""The way out, against servers that misbehave: one deadline, bounded answers, verified TLS, and no leaks."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import SinkRejected, SinkUnavailable
from app.notify.notifier import attempt
from app.notify.routing import Target
from app.notify.settings import NotificationSettings
from app.notify.transport import MOST_BODY, MOST_CONNECTIONS, NetworkTransport, ThreadLoops
from tests.sinks.test_email import to as mail_to
from tests.support import http_server
from tests.support.http_server import Receiver, Reply, Rude, Seen
from tests.support.outcome import LOOPBACK, NOTE, configured, outcome
from tests.support.tls import Authority

Treat = Callable[[socket.socket, threading.Event], None]


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Target]:
    """Give a function that configures a webhook to a URL."""
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


def test_an_endless_answer_is_read_to_64_kib(webhook: Callable[[str], Target]) -> None:
    with Rude(http_server.endless) as server:
        assert outcome(webhook(server.url), seconds=10) == "delivered"

    async def read() -> int:
        network = NetworkTransport(NotificationSettings.read())
        target = webhook(server.url)
        (url,) = target.settings.urls.values()
        answer = await network.post(url, b"", {})
        await network.close()
        return len(answer.body)

    with Rude(http_server.endless) as server:
        assert asyncio.run(read()) == MOST_BODY


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
            await attempt(target, NOTE, network, 5)
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
        ("email", http_server.banner_drip),
        ("email", http_server.silence),
    ],
)
def test_a_thousand_hanging_attempts_leak_nothing(monkeypatch: pytest.MonkeyPatch, sink: str, treat: Treat) -> None:
    deadline = 0.05

    def cut(lanes: ThreadLoops, target: Target) -> float:
        started = time.monotonic()
        with pytest.raises(SinkUnavailable, match="timeout"):
            lanes(lambda transport: attempt(target, NOTE, transport, deadline))
        return time.monotonic() - started

    def many(target: Target) -> list[float]:
        lanes = ThreadLoops(NotificationSettings.read())
        claimed = [cut(lanes, target) for _ in range(125)]
        lanes.close()
        return claimed

    threads = threading.active_count()
    with Rude(treat) as server:
        env = {"SB_NOTIFICATION_WEBHOOK_URL": server.url} if sink == "webhook" else mail_to(server.port)
        (target,) = configured(monkeypatch, {**LOOPBACK, **env})
        with ThreadPoolExecutor(8) as pool:  # as many as a notifier has threads
            claimed = [seconds for lane in pool.map(many, [target] * 8) for seconds in lane]
        leaked = len(_established(server.port))
        connections = server.connections
    print(f"{len(claimed)} attempts, slowest {max(claimed):.3f}s of {deadline}s")
    assert len(claimed) == 1000
    assert connections > 900  # a few may be cut before the busy server has accepted them
    assert leaked == 0
    assert threading.active_count() <= threads


@pytest.mark.parametrize("treat", [http_server.header_drip, http_server.silence])
def test_attempts_that_were_cut_leave_room_for_others(
    webhook: Callable[[str], Target], monkeypatch: pytest.MonkeyPatch, treat: Treat
) -> None:
    """More attempts are cut than a pool has places, at each step of the loop; the next one still goes out."""

    async def cut_and_send(bad: Target, good: Target) -> None:
        network = NetworkTransport(NotificationSettings.read())
        for steps in range(30):
            for _ in range(MOST_CONNECTIONS):
                cut = asyncio.create_task(attempt(bad, NOTE, network, 5))
                for _ in range(steps):
                    await asyncio.sleep(0)
                cut.cancel()
                with suppress(asyncio.CancelledError):
                    await cut
        await attempt(good, NOTE, network, 5)
        await network.close()

    with Rude(treat) as server, Receiver() as receiver:
        bad, good = webhook(server.url), webhook(receiver.url)
        asyncio.run(cut_and_send(bad, good))
        assert len(receiver.seen) == 1


def test_nothing_of_a_url_is_logged(webhook: Callable[[str], Target], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for quiet in ("httpx", "httpcore"):
        logging.getLogger(quiet).setLevel(logging.CRITICAL)  # as app.logs does
    with Receiver(Reply(500)) as receiver:
        outcome(webhook(f"{receiver.url}/canary?token=canary"))
    outcome(webhook("http://127.0.0.1:1/canary"))
    assert "canary" not in caplog.text


def test_what_is_no_url_is_permanent(monkeypatch: pytest.MonkeyPatch) -> None:
    from pydantic import SecretStr  # noqa: PLC0415

    async def post() -> Any:
        network = NetworkTransport(NotificationSettings.read())
        try:
            return await network.post(SecretStr("ftp://127.0.0.1/x"), b"", {})
        finally:
            await network.close()

    with pytest.raises(SinkRejected, match="template"):
        asyncio.run(post())


def _established(port: int) -> set[str]:
    import psutil  # noqa: PLC0415

    own = psutil.Process().net_connections("tcp")
    return {str(one.laddr.port) for one in own if one.raddr and one.raddr.port == port}
