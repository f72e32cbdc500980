"""Apprise in its own process: it delivers, it is cut off, and it is guarded like the others."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.core.errors import ConfigError
from app.notify import apprise_child
from app.notify.delivery.send import attempt
from app.notify.settings import NotificationSettings
from app.notify.transport import NetworkTransport, ThreadLoops
from tests.support import http_server
from tests.support.forward_proxy import ForwardProxy
from tests.support.http_server import Receiver, Reply, Rude
from tests.support.outcome import LOOPBACK, NOTE, configured, outcome
from tests.support.processes import ROOT, environment
from tests.support.tls import Authority
from tests.support.waiting import HUNG

URLS = "SB_NOTIFICATION_APPRISE_URLS"


def test_delivers_by_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as receiver:
        env = {**LOOPBACK, URLS: f"json://127.0.0.1:{receiver.port}/x json://127.0.0.1:{receiver.port}/y"}
        first, second = configured(monkeypatch, env)
        assert (first.name, second.name) == ("apprise:json-1", "apprise:json-2")
        assert outcome(second) == "delivered"
    (seen,) = receiver.seen
    assert seen.path == "/y"
    assert seen.json["title"] == "[warn] agents flagged stale (flipped=3)"
    assert NOTE.id in seen.json["message"]


@pytest.mark.parametrize("status", [400, 500])
def test_a_refusal_is_tried_again_because_the_library_does_not_say_why(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    with Receiver(Reply(status)) as receiver:
        (target,) = configured(monkeypatch, {**LOOPBACK, URLS: f"json://127.0.0.1:{receiver.port}/x"})
        assert outcome(target) == "unavailable server_error refused"


def test_what_is_no_service_is_permanent(monkeypatch: pytest.MonkeyPatch) -> None:
    (target,) = configured(monkeypatch, {**LOOPBACK, URLS: "nosuchservice://x"})
    assert outcome(target) == "rejected template url"


def test_a_closed_network_is_not_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as receiver:
        (target,) = configured(monkeypatch, {URLS: f"json://localhost:{receiver.port}/x"})
        assert outcome(target) == "rejected blocked_address"
        assert receiver.seen == []


def test_redirects_and_proxies_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as elsewhere, Receiver(Reply(302, headers={"Location": elsewhere.url})) as receiver:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, elsewhere.url)
        (target,) = configured(monkeypatch, {**LOOPBACK, URLS: f"json://127.0.0.1:{receiver.port}/x"})
        assert outcome(target) == "unavailable server_error refused"
        assert (len(receiver.seen), len(elsewhere.seen)) == (1, 0)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("hooks.no-such-domain.invalid", "delivered"),
        ("169.254.169.254", "rejected blocked_address"),
        ("10.9.8.7", "rejected blocked_address"),
    ],
)
def test_the_proxy_that_is_set_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str, expected: str
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.file))
    with Receiver(tls=authority.server(host)) as receiver, ForwardProxy({host: receiver.port}, login="a:b") as proxy:
        monkeypatch.setenv("SB_EGRESS_PROXY_URL", proxy.url)
        (target,) = configured(monkeypatch, {URLS: f"jsons://{host}/x"})
        assert outcome(target) == expected
        assert len(receiver.seen) == len(proxy.asked) == (expected == "delivered")


def test_what_is_in_the_clear_is_not_led_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SB_EGRESS_NO_PROXY", "spared.invalid")
    with Receiver() as receiver, ForwardProxy() as proxy:
        monkeypatch.setenv("SB_EGRESS_PROXY_URL", proxy.url)
        (target,) = configured(monkeypatch, {**LOOPBACK, URLS: f"json://127.0.0.1:{receiver.port}/x"})
        assert outcome(target) == "delivered"
        assert (len(receiver.seen), proxy.asked) == (1, [])


def test_an_answer_without_an_end_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Rude(http_server.endless) as rude:
        (target,) = configured(monkeypatch, {**LOOPBACK, URLS: f"json://127.0.0.1:{rude.port}/x"})
        assert outcome(target).startswith("unavailable ")


def test_it_runs_from_a_notifiers_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as receiver:
        (target,) = configured(monkeypatch, {**LOOPBACK, URLS: f"json://127.0.0.1:{receiver.port}/x"})

        def deliver() -> None:
            lanes = ThreadLoops(NotificationSettings.read())
            lanes(lambda transport: attempt(target, NOTE, transport, HUNG))
            lanes.close()

        with ThreadPoolExecutor(1) as threads:
            threads.submit(deliver).result()
    assert len(receiver.seen) == 1


@pytest.mark.parametrize(
    "query", ["verify=no", "VERIFY=0", "a=b&Verify=false", "verify=", "ver%69fy=no", "verify=never"]
)
def test_a_url_that_switches_verification_off_is_refused_at_boot(monkeypatch: pytest.MonkeyPatch, query: str) -> None:
    with pytest.raises(ConfigError, match="verify") as refused:
        configured(monkeypatch, {**LOOPBACK, URLS: f"jsons://canary.example/x?{query}"})
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize("query", ["verify=yes", "Verify=True", "verify=1", "verified=no"])
def test_a_url_that_leaves_it_on_is_fine(monkeypatch: pytest.MonkeyPatch, query: str) -> None:
    assert configured(monkeypatch, {**LOOPBACK, URLS: f"jsons://example.org/x?{query}"})


def test_a_service_that_does_not_verify_is_not_used_however_its_url_says_so(tmp_path: Path) -> None:
    """Past what is read at boot: the library itself is asked."""
    with Receiver(tls=Authority(tmp_path).server()) as receiver:
        content = {"url": f"jsons://127.0.0.1:{receiver.port}/x?verify=no", "title": "t", "body": "b", "kind": "info"}
        words = [sys.executable, "-m", apprise_child.__name__]
        env = environment("", "") | LOOPBACK
        done = subprocess.run(words, cwd=ROOT, env=env, input=json.dumps(content).encode(), check=False)
    assert done.returncode == apprise_child.UNVERIFIED
    assert receiver.seen == []


def test_a_service_that_stalls_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    with Rude(http_server.silence) as rude:
        (target,) = configured(monkeypatch, {**LOOPBACK, URLS: f"json://127.0.0.1:{rude.port}/x"})
        assert outcome(target, seconds=3) == "unavailable timeout"


def test_datagrams_keep_to_the_policy_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as log:
        log.bind(("127.0.0.1", 0))
        log.setblocking(False)
        env = {URLS: f"rsyslog://127.0.0.1:{log.getsockname()[1]}"}
        (target,) = configured(monkeypatch, env)
        assert outcome(target) == "rejected blocked_address"
        with pytest.raises(BlockingIOError):
            log.recv(2000)
        (target,) = configured(monkeypatch, {**env, **LOOPBACK})
        assert outcome(target) == "delivered"
        assert NOTE.id.encode() in log.recv(2000)


def test_it_gets_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "REDIS_URL", "SB_NOTIFICATION_SLACK_TOKEN", "AWS_SECRET_ACCESS_KEY", "OTHER"):
        monkeypatch.setenv(name, "canary")

    async def child() -> int:
        network = NetworkTransport(NotificationSettings.read())
        try:
            return await network.child("tests.sinks.canary_child", b"")
        finally:
            await network.close()

    assert asyncio.run(child()) == 0
