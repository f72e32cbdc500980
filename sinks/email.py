"""email: one message for each recipient, by SMTP. Text and HTML; a message that is sent again keeps its id."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from html import escape
from socket import gethostname
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, SecretStr, model_validator

from app.core.config import name_of, variable
from app.core.errors import Fault, SinkRejected
from app.core.events import Notification
from app.core.values import Bool, PositiveInt
from app.notify.format import body_lines, headline, one_line, timestamp, truncate
from app.notify.sink import Destination, Filter, Loudness, MailServer, SinkSettings, Transport, at_least, only, sink

_PORTS = {"starttls": 587, "implicit": 465, "none": 25}
#: A domain name of two labels or more: servers refuse to be greeted with less.
_QUALIFIED = re.compile(r"(?=.{1,253}$)([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z][A-Za-z0-9-]{0,62}\.?")
#: Code points of a subject, at most.
_SUBJECT = 200


def _address(text: str) -> str:
    try:
        address = Address(addr_spec=text)
    except Exception:  # noqa: BLE001 - that parser lets exceptions of any class out
        address = None
    if address is None or not address.domain or not text.isascii() or not text.isprintable():
        raise ValueError("not an address; accepted: name@domain, several separated by commas")
    return address.addr_spec


def _addresses(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(dict.fromkeys(_address(part.strip()) for part in value.split(",") if part.strip()))


def _tls(value: object) -> object:
    if value is not None and value not in _PORTS:
        raise ValueError("not a way to encrypt; accepted: starttls, implicit, none")
    return value


def _host(value: str) -> str:
    if value and not re.fullmatch(r"[A-Za-z0-9._:-]+", value):
        raise ValueError("not a host; accepted: a name or an address, without a port")
    return value


def _greeting(value: str) -> str:
    if value and not (_QUALIFIED.fullmatch(value) or (re.fullmatch(r"\[[^\[\]]+\]", value) and _host(value[1:-1]))):
        raise ValueError("not a name to greet with; accepted: a domain name such as worker.example.org, or [192.0.2.1]")
    return value


class Email(SinkSettings):
    """The server, the sender and the recipients."""

    host: Annotated[str, AfterValidator(_host)] = variable(
        "SB_NOTIFICATION_EMAIL_HOST", default="", meaning="the SMTP server; unset: no mail"
    )
    port: PositiveInt | None = variable(
        "SB_NOTIFICATION_EMAIL_PORT",
        default=None,
        meaning="its port; unset: 587, 465 with implicit TLS, 25 without TLS",
    )
    tls: Annotated[Literal["starttls", "implicit", "none"] | None, BeforeValidator(_tls)] = variable(
        "SB_NOTIFICATION_EMAIL_TLS",
        default=None,
        documented="implicit on port 465, else starttls",
        meaning="starttls (required, not tried), implicit, or none",
    )
    greeting: Annotated[str, AfterValidator(_greeting)] = variable(
        "SB_NOTIFICATION_EMAIL_EHLO",
        default="",
        documented="this machine's name if it has a domain, else the sender's domain",
        meaning="name that the server is greeted with; many refuse one without a domain",
    )
    allow_plaintext: Bool = variable(
        "SB_NOTIFICATION_EMAIL_ALLOW_PLAINTEXT",
        default="false",
        meaning="must be true for SB_NOTIFICATION_EMAIL_TLS=none",
    )
    username: str = variable(
        "SB_NOTIFICATION_EMAIL_USERNAME", default="", secret=True, meaning="login, if the server wants one"
    )
    password: SecretStr | None = variable(
        "SB_NOTIFICATION_EMAIL_PASSWORD", default=None, secret=True, meaning="its password"
    )
    sender: Annotated[str, AfterValidator(lambda text: text and _address(text))] = variable(
        "SB_NOTIFICATION_EMAIL_FROM", default="", meaning="the sender's address"
    )
    recipients: Annotated[tuple[str, ...], BeforeValidator(_addresses)] = variable(
        "SB_NOTIFICATION_EMAIL_TO", default="", meaning="the recipients, comma-separated; each has its own delivery"
    )
    min_severity: Loudness = at_least("EMAIL", "warn")
    sweepers: Filter = only("EMAIL")

    @model_validator(mode="after")
    def _consistent(self) -> Email:
        problems = []
        if self.host and not self.sender:
            problems.append("SB_NOTIFICATION_EMAIL_FROM: required, because SB_NOTIFICATION_EMAIL_HOST is set")
        if self.host and not self.recipients:
            problems.append("SB_NOTIFICATION_EMAIL_TO: required, because SB_NOTIFICATION_EMAIL_HOST is set")
        if bool(self.username) != bool(self.password):
            problems.append(
                "SB_NOTIFICATION_EMAIL_USERNAME: needs SB_NOTIFICATION_EMAIL_PASSWORD beside it, and the reverse"
            )
        if self.tls == "none" and not self.allow_plaintext:
            problems.append("SB_NOTIFICATION_EMAIL_TLS: none needs SB_NOTIFICATION_EMAIL_ALLOW_PLAINTEXT=true")
        if self.tls == "none" and self.username:
            problems.append(
                "SB_NOTIFICATION_EMAIL_USERNAME: no login without TLS; the password would travel in the clear"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def enabled(self) -> bool:
        """Whether there is a server."""
        return bool(self.host)

    @property
    def server(self) -> MailServer:
        """The server, and how it is spoken to: what is not said follows from what is."""
        tls = self.tls or ("implicit" if self.port == _PORTS["implicit"] else "starttls")
        password = self.password or SecretStr("")
        greeting = self.greeting or _own_name() or self.sender.rpartition("@")[2]
        return MailServer(self.host, self.port or _PORTS[tls], tls, greeting, self.username, password, self.sender)

    @property
    def destinations(self) -> Mapping[str, Destination]:
        """The server."""
        server = self.server
        return {name_of(type(self), "host"): Destination(server.host, server.port, server.tls == "none", mail=True)}

    @property
    def receivers(self) -> Mapping[str, str]:
        """The recipients, each under the beginning of a hash: people's addresses stay out of tables and labels."""
        return {hashlib.sha256(address.lower().encode()).hexdigest()[:8]: address for address in self.recipients}


@sink("email", settings=Email)
async def email(notification: Notification, settings: Email, receiver: str, transport: Transport) -> None:
    """Hand one message for one recipient to the server."""
    try:
        content = message(notification, settings.sender, receiver)
    except (ValueError, MessageError):
        raise SinkRejected(Fault.TEMPLATE) from None
    await transport.mail(settings.server, content, receiver)


def _own_name() -> str:
    """Return this machine's name if it is one that servers accept, else nothing. No resolver is asked: it may hang."""
    name = gethostname()
    return name if _QUALIFIED.fullmatch(name) and not name.startswith("localhost.") else ""


def message(notification: Notification, sender: str, recipient: str) -> EmailMessage:
    """Return the message. Its id and date are the event's, and repeated attempts are the same to the last byte."""
    event, domain = notification.event, sender.rpartition("@")[2]
    title = headline(notification)
    mail = EmailMessage(policy=SMTP)
    mail["From"] = sender
    mail["To"] = recipient
    mail["Subject"] = truncate(one_line(title), _SUBJECT)
    mail["Date"] = format_datetime(notification.time)
    mail["Message-ID"] = f"<{notification.id}.email@{domain}>"
    thread = hashlib.sha256(event.component.encode()).hexdigest()[:16]
    mail["References"] = mail["In-Reply-To"] = f"<grp-{thread}-{notification.time:%Y-%m-%d}@{domain}>"
    mail["List-Id"] = f"<secrets-bridge-worker.{domain}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail["X-Auto-Response-Suppress"] = "All"
    lines = list(body_lines(notification)) or [event.title]
    foot = f"{event.component}, {timestamp(notification.time)}, event {notification.id}"
    mail.set_content("\n".join([title, "", *lines, "", foot]) + "\n")
    mail.add_alternative(_html(title, lines, foot), subtype="html")
    # Left to the library it is random, and a pattern is compiled for each, which Python keeps 512 of.
    mail.set_boundary(f"=_{hashlib.sha256(str(notification.id).encode()).hexdigest()[:32]}")
    return mail


def _html(title: str, lines: list[str], foot: str) -> str:
    rows = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return (
        f"<!doctype html><p><strong>{escape(title)}</strong></p><ul>{rows}</ul><p><small>{escape(foot)}</small></p>\n"
    )
