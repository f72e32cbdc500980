"""An SMTP server (aiosmtpd) that refuses where it is told to."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

from tests.support.waiting import HUNG

#: A step of the conversation, and the reply that ends it there.
Replies = Mapping[str, str]


class SmtpServer(Controller):
    """A server on a free port of the loopback interface."""

    def __init__(
        self,
        replies: Replies | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        implicit: bool = False,
        login: bool = False,
        qualified: bool = False,
    ) -> None:
        """With `qualified` it takes mail of those only who greet it by a name with a domain, or an address."""
        self.replies = dict(replies or {})
        self.qualified = qualified
        self.greetings: list[str] = []
        self.got: list[tuple[str, list[str], EmailMessage]] = []
        self.logins: list[tuple[str, str]] = []
        self.encrypted: list[bool] = []
        words: dict[str, Any] = {}
        if tls is not None and not implicit:
            words["tls_context"] = tls
        if login:
            words["authenticator"] = self._authenticate
            words["auth_require_tls"] = not implicit
        else:
            words["auth_exclude_mechanism"] = ["LOGIN", "PLAIN"]
        super().__init__(
            self, hostname="127.0.0.1", port=0, ssl_context=tls if implicit else None, ready_timeout=HUNG, **words
        )

    def _trigger_server(self) -> None:
        """Take the port that the system gave, before the server is tried out."""
        assert isinstance(self.server, asyncio.Server)
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()  # type: ignore[no-untyped-call]

    def reply(self, *steps: str) -> str:
        """Return the reply that was set for the first of these steps that has one."""
        return next((self.replies[step] for step in steps if step in self.replies), "250 OK")

    def _authenticate(self, _server: SMTP, _session: Session, _env: Envelope, _how: str, data: Any) -> AuthResult:
        if "AUTH" in self.replies:
            return AuthResult(success=False, handled=False, message=self.replies["AUTH"])
        self.logins.append((data.login.decode(), data.password.decode()))
        return AuthResult(success=True)

    async def handle_EHLO(  # noqa: N802
        self, _server: SMTP, session: Session, _envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        """Answer EHLO."""
        session.host_name = hostname
        self.greetings.append(hostname)
        return responses

    async def handle_MAIL(  # noqa: N802
        self, _server: SMTP, session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        """Answer MAIL FROM."""
        self.encrypted.append(session.ssl is not None)
        envelope.mail_from = address
        return self.reply("MAIL")

    async def handle_RCPT(  # noqa: N802
        self, _server: SMTP, session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        """Answer RCPT TO; `RCPT address` refuses one recipient only."""
        if self.qualified and not (str(session.host_name).startswith("[") or "." in str(session.host_name)):
            return "504 5.5.2 Helo command rejected: need fully-qualified hostname"
        reply = self.reply(f"RCPT {address}", "RCPT")
        if reply.startswith("250"):
            envelope.rcpt_tos.append(address)
        return reply

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Answer the final dot."""
        reply = self.reply("DATA")
        if reply.startswith("250"):
            assert isinstance(envelope.content, bytes)
            message = message_from_bytes(envelope.content, policy=policy.default)
            assert isinstance(message, EmailMessage)
            self.got.append((envelope.mail_from or "", list(envelope.rcpt_tos), message))
        return reply
