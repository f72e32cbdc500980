"""An SMTP server that falls silent in any state of the conversation is cut off at the attempt's one deadline."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.sinks.test_email import to
from tests.support import http_server
from tests.support.http_server import Rude
from tests.support.outcome import LOOPBACK, configured, outcome
from tests.support.tls import Authority

Treat = Callable[[socket.socket, threading.Event], None]
HELLO = ("EHLO", b"250-me\r\n250-AUTH PLAIN\r\n250 STARTTLS\r\n")
PLAIN: Sequence[tuple[str, bytes]] = (
    ("greeting", b"220 me\r\n"),
    HELLO,
    ("MAIL", b"250 ok\r\n"),
    ("RCPT", b"250 ok\r\n"),
    ("DATA", b"354 go on\r\n"),
    ("the final dot", b"250 ok\r\n"),
    ("QUIT", b"221 bye\r\n"),
)
SECURE: Sequence[tuple[str, bytes]] = (PLAIN[0], HELLO, ("STARTTLS", b"220 go on\r\n"), ("handshake", b""))
LOGIN: Sequence[tuple[str, bytes]] = (HELLO, ("AUTH", b"235 ok\r\n"))


def silent_at(step: str, conversation: Sequence[tuple[str, bytes]], tls: ssl.SSLContext | None = None) -> Treat:
    """Return how to treat a connection: keep to the conversation, and fall silent in place of one step's reply."""

    def treat(connection: socket.socket, over: threading.Event) -> None:
        for name, reply in conversation:
            if name == "handshake" and name != step:
                assert tls is not None
                connection = tls.wrap_socket(connection, server_side=True)
                continue
            if name not in ("greeting", "handshake"):
                end = b"\r\n.\r\n" if name == "the final dot" else b"\r\n"
                heard = b""
                while not heard.endswith(end):
                    if not (piece := connection.recv(65536)):
                        return
                    heard += piece
            if name == step:
                break
            connection.sendall(reply)
        with suppress(OSError), connection:
            http_server.silence(connection, over)

    return treat


@pytest.mark.parametrize("step", [name for name, _ in PLAIN[:-1]])
def test_silence_in_a_state_is_a_time_out(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    with Rude(silent_at(step, PLAIN)) as server:
        (target,) = configured(monkeypatch, to(server.port, TLS="none", ALLOW_PLAINTEXT="true"))
        assert outcome(target, seconds=0.5) == "unavailable timeout"


@pytest.mark.parametrize("step", ["STARTTLS", "handshake", "AUTH"])
def test_silence_before_and_behind_tls_is_a_time_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: str
) -> None:
    authority = Authority(tmp_path)
    with Rude(silent_at(step, (*SECURE, *LOGIN), authority.server())) as server:
        (target,) = configured(monkeypatch, to(server.port, authority, USERNAME="u", PASSWORD="p"))
        assert outcome(target, seconds=2) == "unavailable timeout"


def test_silence_in_a_handshake_is_a_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with Rude(http_server.silence) as server:
        (mail,) = configured(monkeypatch, to(server.port, TLS="implicit"))
        assert outcome(mail, seconds=0.5) == "unavailable timeout"
        monkeypatch.delenv("SB_NOTIFICATION_EMAIL_HOST")
        url = f"https://127.0.0.1:{server.port}/"
        (hook,) = configured(monkeypatch, {**LOOPBACK, "SB_NOTIFICATION_WEBHOOK_URL": url})
        assert outcome(hook, seconds=0.5) == "unavailable timeout"


def test_a_goodbye_that_is_not_answered_does_not_cost_the_mail(monkeypatch: pytest.MonkeyPatch) -> None:
    with Rude(silent_at("QUIT", PLAIN)) as server:
        (target,) = configured(monkeypatch, to(server.port, TLS="none", ALLOW_PLAINTEXT="true"))
        assert outcome(target) == "delivered"
