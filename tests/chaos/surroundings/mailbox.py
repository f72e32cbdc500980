"""A mail server behind STARTTLS, which keeps what it took as the other receivers do, and fails as it is told to."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.support.http_server import Seen
from tests.support.smtp_server import SmtpServer

RECIPIENT = "ops@example.org"
#: The receiver's name in the outbox: an address is known there by the beginning of its hash.
TARGET = f"email:{hashlib.sha256(RECIPIENT.encode()).hexdigest()[:8]}"


class Mailbox(SmtpServer):
    """The server. `accepted` is what it took, with the id that each mail bore and its text."""

    def __init__(self, tls: ssl.SSLContext, accepted: list[Seen]) -> None:
        super().__init__(tls=tls)
        logging.getLogger("mail.log").setLevel(logging.CRITICAL)  # a conversation that breaks off is no news here
        self.accepted = accepted
        self._met: list[str] = []
        self._late = 0.0
        self._hangs_up = False

    def settings(self, port: int) -> dict[str, str]:
        """Return the settings of processes that send it mail, by way of this port."""
        return {
            "SB_NOTIFICATION_EMAIL_PORT": str(port),
            "SB_NOTIFICATION_EMAIL_HOST": "127.0.0.1",
            "SB_NOTIFICATION_EMAIL_FROM": "worker@example.org",
            "SB_NOTIFICATION_EMAIL_TO": RECIPIENT,
            "SB_NOTIFICATION_EMAIL_EHLO": "worker.example.org",
            "SB_NOTIFICATION_EMAIL_MIN_SEVERITY": "info",
        }

    @contextmanager
    def failing(
        self, met: list[str], replies: dict[str, str], *, late: float = 0.0, hangs_up: bool = False
    ) -> Iterator[None]:
        """Have it give these replies while the body runs, or take mail and answer late or never.

        Who met that is counted into the list.
        """
        self.replies, self._met, self._late, self._hangs_up = replies, met, late, hangs_up
        try:
            yield
        finally:
            self.replies, self._met, self._late, self._hangs_up = {}, [], 0.0, False

    def reply(self, *steps: str) -> str:
        """Return the reply at a step, and note who was given one that was set."""
        self._met.extend(step for step in steps if step in self.replies)
        return super().reply(*steps)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's
        """Answer the final dot."""
        reply = await super().handle_DATA(server, session, envelope)
        if not reply.startswith("250"):
            return reply
        _, _, mail = self.got.pop()
        text = mail.get_body(("plain",))
        assert text is not None
        event = mail["Message-ID"].strip("<>").partition(".")[0]
        body = json.dumps({"text": text.get_content()}).encode()
        self.accepted.append(Seen("DATA", TARGET, {"webhook-id": event}, body))
        await asyncio.sleep(self._late)
        if self._hangs_up:
            assert isinstance(server.transport, asyncio.WriteTransport)
            server.transport.abort()
        return reply
