"""What a sink is: a name, its settings, and one coroutine that sends one notification to one receiver.

A module in `sinks/` declares one with the `sink` decorator. It reaches its receiver by a `Transport` only, which owns
deadline, addresses, TLS and limits. It returns when the receiver has the notification, raises SinkRejected when it
never will, SinkUnavailable when it may later. All else (outbox, retries, breaker, digests) is not the sink's business.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from json import loads
from typing import TYPE_CHECKING, Annotated, Any, Generic, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr

from app.core.backoff import retry_after
from app.core.config import Settings, name_of, variable
from app.core.errors import Fault, SinkRejected, SinkUnavailable
from app.core.events import NOTIFICATIONS, Event, Notification, Severity

if TYPE_CHECKING:
    from datetime import datetime
    from email.message import EmailMessage


def _severity(value: object) -> object:
    name = str(value).lower()
    try:
        return Severity("warn" if name == "warning" else name)
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
    problem = "not a URL; accepted: https://host/path, or http:// where that is allowed"
    try:  # what stands behind the host is escaped where it has to be, as in Go
        url = urlsplit(value)
        fine = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        fine = fine and value.isprintable() and value == value.strip() and " " not in url.netloc
        (url.hostname or "").encode("idna")
    except ValueError:
        fine = False
    if not fine:
        raise ValueError(problem)
    return SecretStr(value)


def _header_safe(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("not a token; accepted: printable ASCII without spaces")
    return value


Filter = Annotated[tuple[str, ...], BeforeValidator(_names)]
Loudness = Annotated[Severity, BeforeValidator(_severity)]
#: A URL of a receiver. It is a credential: its repr and str are masked.
SecretUrl = Annotated[SecretStr, BeforeValidator(_url)]
#: A credential that travels in a header.
Token = Annotated[SecretStr, AfterValidator(_header_safe)]


def at_least(sink: str, default: str) -> Any:
    """Declare a sink's setting of the least severity that it gets."""
    return variable(
        f"SB_NOTIFICATION_{sink}_MIN_SEVERITY", default=default, meaning="events quieter than this do not go there"
    )


def only(sink: str) -> Any:
    """Declare a sink's setting of the sweepers whose events it gets."""
    return variable(
        f"SB_NOTIFICATION_{sink}_SWEEPERS",
        default="",
        meaning="sweepers whose events go there, comma-separated; -name for all but it; unset: all",
    )


class Destination(NamedTuple):
    """Where a receiver is; `cleartext` without TLS, `private` if it may be so anywhere, `mail` by SMTP."""

    host: str
    port: int
    cleartext: bool = False
    private: bool = False
    mail: bool = False


def destination(url: SecretStr, *, private: bool = False) -> Destination:
    """Return where a URL leads."""
    parts = urlsplit(url.get_secret_value())
    cleartext = parts.scheme == "http"
    return Destination(parts.hostname or "", parts.port or (80 if cleartext else 443), cleartext, private)


class SinkSettings(Settings):
    """What every sink's settings have; subclasses declare both again, with their variables' names."""

    min_severity: Loudness
    sweepers: Filter

    @property
    def enabled(self) -> bool:
        """Whether there is a receiver."""
        return True

    @property
    def receivers(self) -> Mapping[str, str]:
        """The receivers, each with its own deliveries: as the sink knows them, by a short, stable and public key."""
        return {"": ""}

    @property
    def destinations(self) -> Mapping[str, Destination]:
        """Where the receivers are, by the variable that says so; to be checked before anything is sent."""
        return {}

    def filter_reason(self, event: Event) -> str:
        """Return why this sink does not get an event, `severity` or `sweeper`; empty when it does."""
        if event.routing_severity.rank < self.min_severity.rank:
            return "severity"
        if event.component == NOTIFICATIONS:  # about the delivery itself: no sweeper's name leaves it out
            return ""
        included = [name for name in self.sweepers if not name.startswith("-")]
        if f"-{event.component}" in self.sweepers or (included and event.component not in included):
            return "sweeper"
        return ""


class UrlSettings(SinkSettings):
    """What the settings of a sink with one secret URL have; subclasses declare it again, with its variable's names."""

    url: SecretUrl | None

    @property
    def enabled(self) -> bool:
        """Whether there is a URL."""
        return self.url is not None

    @cached_property
    def private(self) -> bool:
        """Whether the receiver may be anywhere that is dialled at all, and without TLS, whatever is allowed."""
        return False

    @property
    def destinations(self) -> Mapping[str, Destination]:
        """Where the URL leads, by its variable's name."""
        return {name_of(type(self), "url"): destination(self.url, private=self.private)} if self.url else {}

    @property
    def address(self) -> SecretStr:
        """The URL of a sink that is enabled."""
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
        """The body as text, decoded as UTF-8; to compare with known texts, never to be shown."""
        return self.body.decode("utf-8", "replace").strip()

    @cached_property
    def json(self) -> Mapping[str, Any]:
        """The body as a JSON object, empty when it is none."""
        try:
            parsed = loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return parsed if isinstance(parsed, dict) else {}

    def retry_after(self, now: datetime) -> float | None:
        """Return the seconds that the receiver asks to wait, by its `Retry-After`; None when it does not ask."""
        return retry_after(self.headers.get("retry-after", ""), now)


class Transport(Protocol):
    """How a sink reaches its receiver. Every call is bounded by the attempt's one deadline."""

    @property
    def now(self) -> datetime:
        """The time, aware, UTC."""
        ...

    async def post(self, url: SecretStr, body: bytes, headers: Mapping[str, str], *, private: bool = False) -> Answer:
        """POST once: no redirect is followed, no address is dialled that the egress policy denies.

        `private` opens loopback and private addresses, and any without TLS. Raises SinkUnavailable or SinkRejected when
        there is no answer.
        """
        ...

    async def get(self, url: SecretStr) -> Answer:
        """GET once, as `post` does."""
        ...

    async def mail(self, server: MailServer, message: EmailMessage, recipient: str) -> None:
        """Hand one message for one recipient to an SMTP server. Raises SinkUnavailable or SinkRejected."""
        ...

    async def child(self, module: str, stdin: bytes) -> int:
        """Run one of the worker's modules in a process of its own; return its exit status."""
        ...


@dataclass(frozen=True)
class MailServer:
    """An SMTP server: `tls` is starttls, implicit or none, `greeting` the name that we greet it with."""

    host: str
    port: int
    tls: str
    greeting: str
    username: str = ""
    password: SecretStr | None = None
    sender: str = ""


S = TypeVar("S", bound=SinkSettings)

Send = Callable[[Notification, S, str, Transport], Awaitable[None]]


def ungrouped(_event: Event) -> str:
    """Return the name of no group: the event needs no order, and shares a digest with any other such event."""
    return ""


@dataclass(frozen=True)
class Sink(Generic[S]):
    """A registered sink.

    `group` returns the name of an event's group: events of one group stay in order, and share digests with each other
    only. `paced` is false for a receiver that takes every event as fast as it comes, `mixed` for one that goes by the
    component: its digests are of one component each. `alone` is for one whose attempts cost a process each: those of a
    batch go one after the other. `at_commit` is for one that reaches nobody: it is called with each event by the
    process that has committed it, and nothing is sent. It neither waits nor raises.
    """

    name: str
    settings: type[S]
    send: Send[S]
    group: Callable[[Event], str] = ungrouped
    paced: bool = True
    mixed: bool = True
    at_commit: Callable[[Notification], None] | None = None
    alone: bool = False

    @property
    def grouped(self) -> bool:
        """Whether it has groups at all."""
        return self.group is not ungrouped


def sink(  # noqa: PLR0913 - as much as is known of a sink
    name: str,
    *,
    settings: type[S],
    group: Callable[[Event], str] = ungrouped,
    paced: bool = True,
    mixed: bool = True,
    at_commit: Callable[[Notification], None] | None = None,
    alone: bool = False,
) -> Callable[[Send[S]], Sink[S]]:
    """Make the decorated coroutine the sink `name`, which is a metric label: renaming it breaks dashboards."""

    def declare(send: Send[S]) -> Sink[S]:
        return Sink(name, settings, send, group, paced, mixed, at_commit, alone)

    return declare


_MOST_STATUS = 599


def seconds(number: object) -> float | None:
    """Return a number of a vendor's JSON answer as seconds; None when it is none, or none that a float can hold."""
    try:
        return float(number) if isinstance(number, int | float) else None
    except OverflowError:
        return None


def judge(answer: Answer, now: datetime, retry: frozenset[int] = frozenset()) -> None:
    """Raise SinkRejected or SinkUnavailable by an HTTP status; nothing for 2xx.

    4xx is permanent, except the statuses in `retry`, which the sink's vendor documents; 401 and 410 switch the sink
    off. 3xx is permanent: a redirect is never followed. 5xx is worth a retry.
    """
    status, code = answer.status, str(answer.status)
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return
    if status in retry:
        fault = Fault.RATE_LIMITED if status == HTTPStatus.TOO_MANY_REQUESTS else Fault.SERVER_ERROR
        raise SinkUnavailable(fault, code, retry_after=answer.retry_after(now))
    if HTTPStatus.INTERNAL_SERVER_ERROR <= status <= _MOST_STATUS:
        raise SinkUnavailable(Fault.SERVER_ERROR, code, retry_after=answer.retry_after(now) if retry else None)
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise SinkRejected(Fault.AUTH, code, off=status == HTTPStatus.UNAUTHORIZED)
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        raise SinkRejected(Fault.PAYLOAD_TOO_LARGE, code)
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
        raise SinkRejected(Fault.CLIENT_ERROR, code, off=status == HTTPStatus.GONE)
    raise SinkRejected(Fault.PROTOCOL, code)


#: Statuses below 500 that most vendors document as worth a retry.
TRANSIENT = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
JSON = {"Content-Type": "application/json"}
