"""Mail, to a real SMTP server with real TLS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.core.config import load
from app.core.errors import ConfigError
from app.core.events import Event, Notification, Severity
from app.notify.routing import Target
from sinks.email import Email, message
from tests.support import http_server
from tests.support.http_server import Rude
from tests.support.outcome import LOOPBACK, NOTE, WHEN, configured, outcome
from tests.support.smtp_server import SmtpServer
from tests.support.tls import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def to(port: int, authority: Authority | None = None, **more: str) -> dict[str, str]:
    own = {
        "SB_NOTIFICATION_EMAIL_HOST": "127.0.0.1",
        "SB_NOTIFICATION_EMAIL_PORT": str(port),
        "SB_NOTIFICATION_EMAIL_FROM": "worker@example.org",
        "SB_NOTIFICATION_EMAIL_TO": "ops@example.org",
    }
    trust = {"SB_NOTIFICATION_CA_BUNDLE": str(authority.file)} if authority else {}
    return {**LOOPBACK, **own, **trust, **{f"SB_NOTIFICATION_EMAIL_{name}": value for name, value in more.items()}}


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Any:
    def mailbox(port: int, authority: Authority | None = None, **more: str) -> Target:
        return configured(monkeypatch, to(port, authority, **more))[0]

    return mailbox


REPLIES = [
    ({"MAIL": "451 try again"}, "unavailable server_error 451"),
    ({"MAIL": "550 not you"}, "rejected client_error 550"),
    ({"MAIL": "552 too big"}, "rejected client_error 552"),
    ({"MAIL": "421 closing"}, "unavailable server_error 421"),
    ({"RCPT": "450 mailbox busy"}, "unavailable server_error 450"),
    ({"RCPT": "452 full"}, "unavailable server_error 452"),
    ({"RCPT": "550 no such user"}, "rejected refused_recipients 550"),
    ({"RCPT": "551 not local"}, "rejected refused_recipients 551"),
    ({"RCPT": "553 not allowed"}, "rejected refused_recipients 553"),
    ({"RCPT": "999 odd"}, "unavailable protocol"),
    ({"DATA": "452 no room"}, "unavailable server_error 452"),
    ({"DATA": "451 local error"}, "unavailable server_error 451"),
    ({"DATA": "552 too much"}, "rejected client_error 552"),
    ({"DATA": "554 spam"}, "rejected client_error 554"),
    ({}, "delivered"),
]


@pytest.mark.parametrize(("replies", "expected"), REPLIES, ids=[f"{r}" for r, _ in REPLIES])
def test_a_reply_is_classed(target: Any, authority: Authority, replies: dict[str, str], expected: str) -> None:
    smtp_server = SmtpServer(replies, tls=authority.server())
    smtp_server.start()
    try:
        assert outcome(target(smtp_server.port, authority)) == expected
        assert smtp_server.encrypted == [True]
    finally:
        smtp_server.stop()
    assert len(smtp_server.got) == (expected == "delivered")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("535 5.7.8 bad credentials", "rejected auth 535 off"),
        ("534 too weak", "rejected auth 534 off"),
        ("454 4.7.0 temporary", "unavailable auth 454"),
        ("", "delivered"),
    ],
)
def test_a_login_is_classed(target: Any, authority: Authority, reply: str, expected: str) -> None:
    smtp_server = SmtpServer({"AUTH": reply} if reply else {}, tls=authority.server(), login=True)
    smtp_server.start()
    try:
        assert outcome(target(smtp_server.port, authority, USERNAME="worker", PASSWORD="hunter2")) == expected
    finally:
        smtp_server.stop()
    if not reply:
        assert smtp_server.logins == [("worker", "hunter2")]


def test_a_login_that_is_not_offered_is_permanent(target: Any, authority: Authority) -> None:
    smtp_server = SmtpServer(tls=authority.server())
    smtp_server.start()
    try:
        assert outcome(target(smtp_server.port, authority, USERNAME="u", PASSWORD="p")) == "rejected auth not_offered"
    finally:
        smtp_server.stop()


def test_never_falls_back_to_the_clear(target: Any) -> None:
    smtp_server = SmtpServer()
    smtp_server.start()
    try:
        assert outcome(target(smtp_server.port)) == "rejected tls starttls"
    finally:
        smtp_server.stop()
    assert smtp_server.encrypted == []


@pytest.mark.parametrize("mode", ["starttls", "implicit"])
def test_a_certificate_is_verified(target: Any, authority: Authority, mode: str) -> None:
    smtp_server = SmtpServer(tls=authority.server(), implicit=mode == "implicit")
    smtp_server.start()
    try:
        assert outcome(target(smtp_server.port, TLS=mode)) == "unavailable tls"
    finally:
        smtp_server.stop()


def test_the_servers_name_is_verified(target: Any, authority: Authority) -> None:
    smtp_server = SmtpServer(tls=authority.server("mail.example.org"))
    smtp_server.start()
    try:
        assert outcome(target(smtp_server.port, authority)) == "unavailable tls"
    finally:
        smtp_server.stop()


def test_implicit_tls_delivers(target: Any, authority: Authority) -> None:
    smtp_server = SmtpServer(tls=authority.server(), implicit=True, login=True)
    smtp_server.start()
    try:
        assert outcome(target(smtp_server.port, authority, TLS="implicit", USERNAME="u", PASSWORD="p")) == "delivered"
    finally:
        smtp_server.stop()
    assert smtp_server.logins == [("u", "p")]


def test_without_tls_only_where_it_is_allowed(target: Any) -> None:
    smtp_server = SmtpServer()
    smtp_server.start()
    try:
        assert outcome(target(smtp_server.port, TLS="none", ALLOW_PLAINTEXT="true")) == "delivered"
    finally:
        smtp_server.stop()


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"421 too busy", "unavailable server_error 421"),
        (b"450 not now", "unavailable server_error 450"),
        (b"554 no mail here", "rejected client_error 554"),
        (b"HTTP/1.1 400 Bad Request", "unavailable protocol"),
    ],
)
def test_a_greeting_is_classed(target: Any, reply: bytes, expected: str) -> None:
    with Rude(http_server.greeting(reply)) as server:
        assert outcome(target(server.port)) == expected


@pytest.mark.parametrize("treat", [http_server.hang_up, http_server.reset, http_server.nonsense])
def test_a_server_that_breaks_off_is_transient(target: Any, treat: Any) -> None:
    with Rude(treat) as server:
        assert outcome(target(server.port), seconds=5).startswith("unavailable ")


@pytest.mark.parametrize("treat", [http_server.banner_drip, http_server.silence])
def test_a_server_that_stalls_is_cut_off(target: Any, treat: Any) -> None:
    with Rude(treat) as server:
        assert outcome(target(server.port), seconds=0.4) == "unavailable timeout"


def test_nobody_there_is_transient(target: Any) -> None:
    assert outcome(target(1)) == "unavailable connect"


def test_a_closed_network_is_not_dialled(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Rude(http_server.silence) as server:
        found = target(server.port)
        monkeypatch.setenv("SB_NOTIFICATION_ALLOWED_NETWORKS", "10.0.0.0/8")
        assert outcome(found) == "rejected blocked_address"
        assert server.connections == 0


def test_each_recipient_has_a_delivery_of_its_own(monkeypatch: pytest.MonkeyPatch, authority: Authority) -> None:
    smtp_server = SmtpServer({"RCPT bad@example.org": "550 no"}, tls=authority.server())
    smtp_server.start()
    try:
        found = configured(monkeypatch, to(smtp_server.port, authority, TO="ops@example.org, bad@example.org"))
        assert [target.receiver for target in found] == ["ops@example.org", "bad@example.org"]
        assert all("example" not in target.name for target in found)
        assert [outcome(target) for target in found] == ["delivered", "rejected refused_recipients 550"]
    finally:
        smtp_server.stop()
    assert [recipients for _, recipients, _ in smtp_server.got] == [["ops@example.org"]]


def test_the_mail_itself(target: Any, authority: Authority) -> None:
    smtp_server = SmtpServer(tls=authority.server())
    smtp_server.start()
    try:
        assert (
            outcome(target(smtp_server.port, authority)) == outcome(target(smtp_server.port, authority)) == "delivered"
        )
    finally:
        smtp_server.stop()
    (sender, recipients, mail), (_, _, again) = smtp_server.got
    assert (sender, recipients) == ("worker@example.org", ["ops@example.org"])
    headers = {name: value for name, value in mail.items() if name not in ("Content-Type", "X-Peer")}
    assert headers == {
        "From": "worker@example.org",
        "To": "ops@example.org",
        "Subject": "[warn] agents flagged stale (flipped=3)",
        "Date": "Mon, 23 Nov 2026 09:00:00 +0000",
        "Message-ID": f"<{NOTE.id}.email@example.org>",
        "In-Reply-To": mail["References"],
        "References": mail["References"],
        "List-Id": "<secrets-bridge-worker.example.org>",
        "Auto-Submitted": "auto-generated",
        "X-Auto-Response-Suppress": "All",
        "MIME-Version": "1.0",
    }
    assert mail["References"].startswith("<grp-")
    assert again["Message-ID"] == mail["Message-ID"]
    text, html = mail.iter_parts()
    assert text.get_content().splitlines() == [
        "[warn] agents flagged stale (flipped=3)",
        "",
        "cutoff=2026-11-23T08:55:00Z",
        "flipped=3",
        "",
        f"agents-stale, 2026-11-23T09:00:00.12Z, event {NOTE.id}",
    ]
    assert html.get_content_type() == "text/html"


def test_each_attempt_is_the_same_to_the_last_byte() -> None:
    event = Event("agents-stale", Severity.WARN, "agents flagged stale")
    mails = [message(Notification(NOTE.id, WHEN, event), "worker@example.org", "ops@example.org") for _ in range(2)]
    first, second = (mail.as_bytes() for mail in mails)
    assert first == second
    other = message(Notification(f"{NOTE.id}-2", WHEN, event), "worker@example.org", "ops@example.org")
    assert other.get_boundary() != mails[0].get_boundary()


def test_no_text_becomes_a_header_or_markup() -> None:
    event = Event("x", Severity.INFO, "title\r\nBcc: everybody@example.org", "<script>alert(1)</script>")
    mail = message(Notification(NOTE.id, WHEN, event), "worker@example.org", "ops@example.org")
    assert mail["Bcc"] is None
    assert mail["Subject"] == "[info] title Bcc: everybody@example.org"
    assert b"<script>" not in mail.get_payload(1).as_bytes()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("machine", "setting", "expected"),
    [
        ("pod-7f9c", "", "example.org"),  # the sender's domain
        ("worker.cluster.example.com", "", "worker.cluster.example.com"),
        ("localhost.localdomain", "", "example.org"),
        ("10.0.0.7", "", "example.org"),
        ("worker_1.example.com", "", "example.org"),
        ("worker.cluster.example.com", "alerts.example.net", "alerts.example.net"),
        ("pod-7f9c", "[192.0.2.1]", "[192.0.2.1]"),
    ],
)
@pytest.mark.parametrize("mode", ["starttls", "none"])
def test_a_server_is_greeted_by_a_name_that_it_takes(  # noqa: PLR0913, PLR0917 - the names, and the way
    target: Any,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    machine: str,
    setting: str,
    expected: str,
) -> None:
    """As Postfix does with `reject_non_fqdn_helo_hostname`, which is what many have: a refusal is for ever."""
    monkeypatch.setattr("sinks.email.gethostname", lambda: machine)
    server = SmtpServer(tls=authority.server() if mode == "starttls" else None, qualified=True)
    server.start()
    more = {"EHLO": setting} if setting else {}
    more |= {"TLS": "none", "ALLOW_PLAINTEXT": "true"} if mode == "none" else {}
    try:
        assert outcome(target(server.port, authority, **more)) == "delivered"
    finally:
        server.stop()
    assert set(server.greetings) == {expected}


def test_port_465_means_implicit_tls_when_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def server(**more: str) -> tuple[str, int]:
        with monkeypatch.context() as patch:
            for name, value in {**to(25, None), **{f"SB_NOTIFICATION_EMAIL_{n}": v for n, v in more.items()}}.items():
                patch.setenv(name, value)
            found = Email.read().server
        return found.tls, found.port

    assert server(PORT="465") == ("implicit", 465)
    assert server(PORT="587") == server(PORT="") == ("starttls", 587)
    assert server(PORT="25") == ("starttls", 25)
    assert server(PORT="465", TLS="starttls") == ("starttls", 465)
    assert server(PORT="587", TLS="implicit") == ("implicit", 587)
    assert server(PORT="", TLS="implicit") == ("implicit", 465)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"FROM": ""}, "SB_NOTIFICATION_EMAIL_FROM: required, because SB_NOTIFICATION_EMAIL_HOST is set"),
        ({"TO": ""}, "SB_NOTIFICATION_EMAIL_TO: required, because SB_NOTIFICATION_EMAIL_HOST is set"),
        ({"TO": "ops@example.org\nBcc: x@y.z"}, "SB_NOTIFICATION_EMAIL_TO: not an address"),
        ({"FROM": "nobody"}, "SB_NOTIFICATION_EMAIL_FROM: not an address"),
        ({"TLS": "maybe"}, "SB_NOTIFICATION_EMAIL_TLS: not a way to encrypt; accepted: starttls, implicit, none"),
        ({"TLS": "none"}, "SB_NOTIFICATION_EMAIL_TLS: none needs SB_NOTIFICATION_EMAIL_ALLOW_PLAINTEXT=true"),
        (
            {"TLS": "none", "ALLOW_PLAINTEXT": "1", "USERNAME": "u", "PASSWORD": "p"},
            "SB_NOTIFICATION_EMAIL_USERNAME: no login without TLS",
        ),
        ({"USERNAME": "u"}, "SB_NOTIFICATION_EMAIL_USERNAME: needs SB_NOTIFICATION_EMAIL_PASSWORD"),
        ({"EHLO": "worker"}, "SB_NOTIFICATION_EMAIL_EHLO: not a name to greet with; accepted: a domain name"),
        ({"EHLO": "a.b\r\nX"}, "SB_NOTIFICATION_EMAIL_EHLO: not a name to greet with"),
        ({"HOST": "mail.example.org/x"}, "SB_NOTIFICATION_EMAIL_HOST: not a host"),
        ({"PORT": "smtp"}, "SB_NOTIFICATION_EMAIL_PORT: not an integer"),
    ],
)
def test_wrong_settings_are_told(monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str], problem: str) -> None:
    for name, value in to(25, None, **wrong).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as told:
        load(Email)
    assert any(line.startswith(problem) for line in told.value.problems), told.value.problems


def test_a_password_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter2\n")
    for name, value in to(25, USERNAME="u", PASSWORD_FILE=str(tmp_path / "password")).items():
        monkeypatch.setenv(name, value)
    password = Email.read().password
    assert password is not None
    assert password.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(Email.read())
