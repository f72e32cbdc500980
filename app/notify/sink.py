"""What a sink is: a name, its settings, and one coroutine that hands one note to one receiver.

A module in `sinks/` declares one with the `sink` decorator. It speaks to the world through a `Wire` alone, which
owns deadline, addresses, TLS and limits. It returns when the receiver has the note, raises SinkRejected when it never
will, SinkUnavailable when it may later. Everything else (outbox, retries, breaker, digests) is the notifier's.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from json import loads
from typing import TYPE_CHECKING, Annotated, Any, Generic, Protocol, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr

from app.core.config import Settings, name_of, variable
from app.core.errors import Fault, SinkRejected, SinkUnavailable
from app.core.events import Event, Notification, Severity
from app.core.retry_after import retry_after

if TYPE_CHECKING:
    from datetime import datetime
    from email.message import EmailMessage


def _severity(value: object) -> object:
    word = str(value).lower()
    try:
        return Severity("warn" if word == "warning" else word)
    except ValueError:
        raise ValueError("not a severity; accepted: info, warn, error") from None


def _names(value: object) -> object:
    if not isinstance(value, str):
        return value
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    if not all(re.fullmatch(r"-?[a-z][a-z0-9-]*", name) for name in names):
        raise ValueError(
            "not a list of sweepers; accepted: names such as wraps-expired, or -wraps-expired for all but it"
        )
    return names


def _url(value: object) -> object:
    if not isinstance(value, str):
        return value
    wrong = "not a URL; accepted: https://host/path, or http:// to a network in SB_NOTIFICATION_ALLOWED_NETWORKS"
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError(wrong)
    try:
        url = urlsplit(value)
        fine = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise ValueError(wrong)
    return SecretStr(value)


def _header_safe(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("not a token; accepted: printable ASCII without spaces")
    return value


Filter = Annotated[tuple[str, ...], BeforeValidator(_names)]
Loudness = Annotated[Severity, BeforeValidator(_severity)]
#: A URL of a receiver; it is a credential, so it shows itself to nobody.
SecretUrl = Annotated[SecretStr, BeforeValidator(_url)]
#: A credential that travels in a header.
Token = Annotated[SecretStr, AfterValidator(_header_safe)]


def at_least(sink: str, default: str) -> Any:
    """Declare the setting by which quiet events do not reach a sink."""
    return variable(
        f"SB_NOTIFICATION_{sink}_MIN_SEVERITY", default=default, meaning="events quieter than this do not go there"
    )


def only(sink: str) -> Any:
    """Declare the setting that chooses whose events reach a sink."""
    return variable(
        f"SB_NOTIFICATION_{sink}_SWEEPERS",
        default="",
        meaning="sweepers whose events go there, comma-separated; -name for all but it; unset: all",
    )


class SinkSettings(Settings):
    """What every sink's settings have; subclasses declare both with their variable names."""

    min_severity: Loudness
    sweepers: Filter

    @property
    def enabled(self) -> bool:
        """Whether there is anybody to tell."""
        return True

    @property
    def receivers(self) -> Mapping[str, str]:
        """The receivers, each with its own deliveries: a short stable key, and what the sink knows it by."""
        return {"": ""}

    @property
    def urls(self) -> Mapping[str, SecretStr]:
        """The receivers' URLs by the variable each came from, to be checked at boot."""
        return {}

    def filter_reason(self, event: Event) -> str:
        """Say why an event is not for this sink, in a word; empty when it is."""
        if event.routing_severity.rank < self.min_severity.rank:
            return "severity"
        wanted = [name for name in self.sweepers if not name.startswith("-")]
        own = event.component == "notifications"  # about the delivery itself: nobody can have asked not to hear of it
        if not own and (f"-{event.component}" in self.sweepers or (wanted and event.component not in wanted)):
            return "sweeper"
        return ""


class UrlSettings(SinkSettings):
    """What the settings of a sink with one secret URL have; subclasses declare it with its variable names."""

    url: SecretUrl | None

    @property
    def enabled(self) -> bool:
        """Whether there is a URL."""
        return self.url is not None

    @property
    def urls(self) -> Mapping[str, SecretStr]:
        """The one URL."""
        return {name_of(type(self), "url"): self.url} if self.url else {}

    @property
    def address(self) -> SecretStr:
        """The URL, of a sink that is on."""
        assert self.url is not None
        return self.url


@dataclass(frozen=True)
class Answer:
    """What an HTTP receiver answered: status, headers in lower case, and at most 64 KiB of body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @cached_property
    def text(self) -> str:
        """The body as text, whatever its encoding claims to be; to compare with known words, never to be shown."""
        return self.body.decode("utf-8", "replace").strip()

    @cached_property
    def json(self) -> Mapping[str, Any]:
        """The body as a JSON object; empty when it is none."""
        try:
            parsed = loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return parsed if isinstance(parsed, dict) else {}

    def retry_after(self, now: datetime) -> float | None:
        """Seconds that the receiver wants to be left alone: the header, as a number or a date."""
        return retry_after(self.headers.get("retry-after", ""), now)


class Transport(Protocol):
    """The way out. Every call is bounded by the attempt's one deadline."""

    @property
    def now(self) -> datetime:
        """The time, aware, UTC."""
        ...

    async def post(self, url: SecretStr, body: bytes, headers: Mapping[str, str]) -> Answer:
        """POST once: no redirect is followed, no proxy is asked, no address outside of the allowed ones is dialled.

        Raises SinkUnavailable or SinkRejected when there is no answer.
        """
        ...

    async def mail(self, server: MailServer, message: EmailMessage, recipient: str) -> None:
        """Hand one message for one recipient to an SMTP server."""
        ...

    async def child(self, module: str, given: bytes) -> int:
        """Run a module of ours in a process of its own, give it this on stdin, and give its exit status."""
        ...


@dataclass(frozen=True)
class MailServer:
    """An SMTP server: `tls` is starttls, implicit or none."""

    host: str
    port: int
    tls: str
    username: str = ""
    password: SecretStr | None = None
    sender: str = ""


S = TypeVar("S", bound=SinkSettings)

Send = Callable[[Notification, S, str, Transport], Awaitable[None]]


def everything(_event: Event) -> str:
    """Put all events into one group: any of them may be told in one message."""
    return ""


@dataclass(frozen=True)
class Sink(Generic[S]):
    """A registered sink.

    `group` names what an event belongs to: events of one named group stay in order, and are told in one message only
    with each other. `paced` is false for a receiver that takes every event as fast as it comes.
    """

    name: str
    settings: type[S]
    send: Send[S]
    group: Callable[[Event], str] = everything
    paced: bool = True


def sink(
    name: str, *, settings: type[S], group: Callable[[Event], str] = everything, paced: bool = True
) -> Callable[[Send[S]], Sink[S]]:
    """Declare the decorated coroutine as the sink `name`, which is a metric label: renaming it breaks dashboards."""

    def declare(send: Send[S]) -> Sink[S]:
        return Sink(name, settings, send, group, paced)

    return declare


_OK, _REDIRECT, _CLIENT, _SERVER = 200, 300, 400, 500
_UNAUTHORIZED, _FORBIDDEN, _GONE, _TOO_LARGE, _TOO_MANY = 401, 403, 410, 413, 429
_MOST_STATUS = 599


def judge(answer: Answer, now: datetime, retry: frozenset[int] = frozenset()) -> None:
    """Raise what an HTTP status means, nothing for 2xx.

    4xx is permanent, but for the statuses in `retry`, which the sink's vendor documents; 401 and 410 switch it off.
    3xx is permanent: a redirect is never followed. 5xx is worth a retry.
    """
    status, code = answer.status, str(answer.status)
    if _OK <= status < _REDIRECT:
        return
    if status in retry:
        fault = Fault.RATE_LIMITED if status == _TOO_MANY else Fault.SERVER_ERROR
        raise SinkUnavailable(fault, code, retry_after=answer.retry_after(now))
    if _SERVER <= status <= _MOST_STATUS:
        raise SinkUnavailable(Fault.SERVER_ERROR, code, retry_after=answer.retry_after(now) if retry else None)
    if status in (_UNAUTHORIZED, _FORBIDDEN):
        raise SinkRejected(Fault.AUTH, code, off=status == _UNAUTHORIZED)
    if status == _TOO_LARGE:
        raise SinkRejected(Fault.PAYLOAD_TOO_LARGE, code)
    if _REDIRECT <= status < _SERVER:
        raise SinkRejected(Fault.CLIENT_ERROR, code, off=status == _GONE)
    raise SinkRejected(Fault.PROTOCOL, code)


#: Statuses below 500 that most vendors document as worth a retry.
PASSING = frozenset({408, 425, 429})
JSON = {"Content-Type": "application/json"}
