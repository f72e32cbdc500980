"""apprise: many other services, by the optional library of that name (`pip install secrets-bridge-worker[apprise]`).

The library opens its own connections and takes no deadline. So it runs in a process of its own that ends with the
attempt, and keeps to the same egress policy as every other sink.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated
from urllib.parse import parse_qsl

from pydantic import AfterValidator, SecretStr

from app.core.config import variable
from app.core.errors import Fault, SinkRejected, SinkUnavailable
from app.core.events import Notification
from app.notify import apprise_child
from app.notify.apprise_child import BLOCKED, DELIVERED, REFUSED, UNKNOWN_URL, UNVERIFIED
from app.notify.format import body_lines, headline
from app.notify.sink import Filter, Loudness, SinkSettings, Transport, at_least, only, sink

#: The beginning of a URL. The scheme becomes part of the receiver's public name, so nothing else may be in it.
_SERVICE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}://")
#: Words by which a URL says what holds anyhow.
_VERIFIED = ("yes", "true", "1")
_KINDS = {"info": "info", "warn": "warning", "error": "failure"}


def _urls(value: SecretStr | None) -> SecretStr | None:
    if value is None:
        return None
    if find_spec("apprise") is None:
        raise ValueError("needs the library; pip install 'secrets-bridge-worker[apprise]'")
    if not all(_SERVICE.match(url) for url in value.get_secret_value().split()):
        raise ValueError("not Apprise URLs; accepted: scheme://... as in Apprise's documentation, space-separated")
    if any(_unverified(url) for url in value.get_secret_value().split()):
        raise ValueError("verify=no is not supported; name the server's authority in the file of REQUESTS_CA_BUNDLE")
    return value


def _unverified(url: str) -> bool:
    """Return whether a URL may have the library take any certificate."""
    parameters = parse_qsl(url.partition("?")[2], keep_blank_values=True)
    return any(name.lower() == "verify" and word.lower() not in _VERIFIED for name, word in parameters)


class Apprise(SinkSettings):
    """Which services."""

    apprise_urls: Annotated[SecretStr | None, AfterValidator(_urls)] = variable(
        "SB_NOTIFICATION_APPRISE_URLS",
        default=None,
        secret=True,
        meaning="Apprise URLs of further services, space-separated; each has its own delivery",
    )
    min_severity: Loudness = at_least("APPRISE", "warn")
    sweepers: Filter = only("APPRISE")

    @property
    def enabled(self) -> bool:
        """Whether there is a URL."""
        return self.apprise_urls is not None

    @property
    def receivers(self) -> Mapping[str, str]:
        """The services, each under its scheme and position; the URL itself is a credential."""
        urls = self.apprise_urls.get_secret_value().split() if self.apprise_urls else []
        return {f"{url.partition('://')[0]}-{number}": str(number) for number, url in enumerate(urls, 1)}


@sink("apprise", settings=Apprise, alone=True)
async def apprise(notification: Notification, settings: Apprise, receiver: str, transport: Transport) -> None:
    """Send by the library to one service."""
    assert settings.apprise_urls is not None
    url = settings.apprise_urls.get_secret_value().split()[int(receiver) - 1]
    content = json.dumps({"url": url, **message(notification)})
    status = await transport.child(apprise_child.__name__, content.encode())
    if status == UNKNOWN_URL:
        raise SinkRejected(Fault.TEMPLATE, "url")
    if status == UNVERIFIED:
        raise SinkRejected(Fault.TLS, "verify")
    if status == BLOCKED:
        raise SinkRejected(Fault.BLOCKED_ADDRESS)
    if status != DELIVERED:  # the library does not say why
        raise SinkUnavailable(Fault.SERVER_ERROR, "refused" if status == REFUSED else "crashed")


def message(notification: Notification) -> dict[str, str]:
    """Return title, body and kind, as the library calls them."""
    event = notification.event
    return {
        "title": headline(notification),
        "body": "\n".join([*body_lines(notification), event.component, notification.id]),
        "kind": _KINDS[event.severity],
    }
