"""What `sb-worker check` says of receivers: which would be refused, and which setting allows them."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from actors import SWEEPERS
from app.cli.checks.receivers import receiver_findings
from app.worker.loading import load
from sinks import SINKS

GO, OWN = "SB_WORKER_WEBHOOK_URL", "SB_NOTIFICATION_WEBHOOK_URL"
REFUSED = "and everything sent there would be refused"
NAMES = {
    "private.example": ["10.1.2.3", "10.1.2.4"],
    "public.example": ["93.184.216.34"],
    "both.example": ["10.1.2.3", "93.184.216.34"],
    "metadata.example": ["169.254.169.254"],
    "odd.example": ["169.254.169.254", "10.1.2.3"],
}
MAIL = {"SB_NOTIFICATION_EMAIL_FROM": "a@example.org", "SB_NOTIFICATION_EMAIL_TO": "b@example.org"}


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def resolver(host: Any, *arguments: Any, **more: Any) -> Any:
        return [info for address in NAMES.get(host, [host]) for info in real(address, *arguments, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    monkeypatch.setenv("DATABASE_URL", "postgres://127.0.0.1/x")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1")


def found(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> list[tuple[str, str, str]]:
    """Return each finding as its subject, ok, warn or FAIL, and the text."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    loaded = load(SWEEPERS, SINKS)
    findings = list(receiver_findings(loaded.notification, loaded.egress.proxy, loaded.targets, {}))
    assert not any(secret in finding.text for finding in findings for secret in ("canary", ".example", ".invalid"))
    words = ["ok" if finding.fine else "warn" if finding.warning else "FAIL" for finding in findings]
    return [(finding.subject, word, finding.text) for finding, word in zip(findings, words, strict=True)]


@pytest.mark.parametrize(
    ("env", "word", "text"),
    [
        ({OWN: "https://public.example/canary"}, "ok", f"{OWN}: its host may be dialled"),
        (
            {OWN: "https://private.example/canary"},
            "FAIL",
            (
                f"{OWN}: its host is at 10.1.2.3, 10.1.2.4, {REFUSED}: closed (loopback, private); dialled"
                " only where SB_NOTIFICATION_ALLOWED_NETWORKS has 10.1.2.3/32,10.1.2.4/32, or networks around"
            ),
        ),
        (
            {OWN: "https://private.example/canary", "SB_NOTIFICATION_ALLOWED_NETWORKS": "10.0.0.0/8"},
            "ok",
            f"{OWN}: its host may be dialled",
        ),
        ({OWN: "https://both.example/"}, "ok", f"{OWN}: its host may be dialled"),
        (
            {OWN: "http://public.example/", "SB_NOTIFICATION_ALLOWED_NETWORKS": "10.0.0.0/8"},
            "FAIL",
            (
                f"{OWN}: its host is at 93.184.216.34, {REFUSED}: without TLS only where"
                " SB_NOTIFICATION_ALLOWED_NETWORKS has 93.184.216.34/32, or networks around; better use https://"
            ),
        ),
        (
            {OWN: "https://metadata.example/", "SB_NOTIFICATION_ALLOWED_NETWORKS": "0.0.0.0/0"},
            "FAIL",
            (
                f"{OWN}: its host is at 169.254.169.254, {REFUSED}: an address that is"
                " never dialled, whatever is allowed"
            ),
        ),
        (
            {OWN: "https://canary.no-such-domain.invalid/"},
            "warn",
            f"{OWN}: its host's name is not known here; what is sent waits until it is",
        ),
        (
            {OWN: "https://odd.example/"},
            "FAIL",
            (
                f"{OWN}: its host is at 169.254.169.254, 10.1.2.3, {REFUSED}: closed (loopback, private); dialled"
                " only where SB_NOTIFICATION_ALLOWED_NETWORKS has 10.1.2.3/32, or networks around"
            ),
        ),
        ({GO: "http://private.example:9093"}, "ok", f"{GO}: its host may be dialled"),
        ({GO: "http://127.0.0.1:9093/canary"}, "ok", f"{GO}: its host may be dialled"),
        ({GO: "https://private.example/"}, "ok", f"{GO}: its host may be dialled"),
        (
            {GO: "http://public.example/canary"},
            "warn",
            f"{GO}: plain http:// to a public address; what is sent there can be read on its way",
        ),
        (
            {GO: "http://metadata.example/"},
            "FAIL",
            (f"{GO}: its host is at 169.254.169.254, {REFUSED}: an address that is never dialled, whatever is allowed"),
        ),
    ],
)
def test_a_webhooks_receiver_is_judged(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], word: str, text: str
) -> None:
    assert found(monkeypatch, env) == [("sink webhook", word, text)]


@pytest.mark.parametrize(
    ("sink", "name", "env"),
    [
        ("slack", "SB_NOTIFICATION_SLACK_URL", {}),
        ("teams", "SB_NOTIFICATION_TEAMS_URL", {}),
        ("discord", "SB_NOTIFICATION_DISCORD_URL", {}),
        ("pagerduty", "SB_NOTIFICATION_PAGERDUTY_URL", {"SB_NOTIFICATION_PAGERDUTY_ROUTING_KEY": "a" * 32}),
        (
            "slack",
            "SB_NOTIFICATION_SLACK_API_URL",
            {"SB_NOTIFICATION_SLACK_TOKEN": "xoxb-canary", "SB_NOTIFICATION_SLACK_CHANNEL": "C0"},
        ),
    ],
)
def test_every_other_sinks_receiver_is_judged(
    monkeypatch: pytest.MonkeyPatch, sink: str, name: str, env: dict[str, str]
) -> None:
    ((subject, word, text),) = found(monkeypatch, {name: "https://private.example/canary", **env})
    assert (subject, word) == (f"sink {sink}", "FAIL")
    assert text.startswith(f"{name}: its host is at 10.1.2.3, 10.1.2.4")


def test_a_mail_server_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    env = {**MAIL, "SB_NOTIFICATION_EMAIL_HOST": "private.example", "SB_EGRESS_PROXY_URL": "http://10.9.9.9:3128"}
    (_, (subject, word, text)) = found(monkeypatch, env)
    assert (subject, word) == ("sink email", "FAIL")  # no proxy leads there
    assert "SB_NOTIFICATION_ALLOWED_NETWORKS has 10.1.2.3/32,10.1.2.4/32" in text


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({OWN: "https://public.example/"}, ("ok", "its host may be dialled")),
        (
            {OWN: "https://canary.no-such-domain.invalid/"},
            ("ok", "its host's name is left to the proxy; it is not known here"),
        ),
        ({OWN: "https://10.1.2.3./"}, ("FAIL", "its host is no name; what a proxy would take it for")),
        ({OWN: "https://both.example/"}, ("FAIL", "its host is at 10.1.2.3, and everything sent there")),
        ({OWN: "https://odd.example/"}, ("FAIL", f"its host is at 169.254.169.254, 10.1.2.3, {REFUSED}: an address")),
        ({OWN: "https://metadata.example/"}, ("FAIL", "its host is at 169.254.169.254, and")),
        ({GO: "http://canary.no-such-domain.invalid/"}, ("warn", "its host's name is not known here;")),
    ],
)
def test_a_receiver_behind_a_proxy_is_judged_as_far_as_it_is_known(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], expected: tuple[str, str]
) -> None:
    ((_, _, _), (_, word, text)) = found(monkeypatch, {**env, "SB_EGRESS_PROXY_URL": "http://10.9.9.9:3128"})
    assert word == expected[0]
    assert text.partition(": ")[2].startswith(expected[1])


@pytest.mark.parametrize(
    ("host", "word", "text"),
    [
        ("private.example", "ok", "its host may be dialled"),
        ("metadata.example", "FAIL", "its host is at an address that is never dialled"),
        ("canary.no-such-domain.invalid", "FAIL", "its host's name is not known here"),
    ],
)
def test_the_proxy_itself_is_judged(monkeypatch: pytest.MonkeyPatch, host: str, word: str, text: str) -> None:
    env = {"SB_EGRESS_PROXY_URL": f"http://user:canary@{host}:3128"}
    assert found(monkeypatch, env) == [("proxy", word, f"SB_EGRESS_PROXY_URL: {text}")]


def test_without_receivers_there_is_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, {}) == []
