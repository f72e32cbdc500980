"""The process that runs Apprise: reads one notification from stdin, sends it, and reports the outcome as exit status.

The URL comes by stdin, because arguments can be listed by others. What holds for every other sink holds here: only
addresses that the egress policy allows are dialled, nothing leaves in the clear but to networks that are allowed for
that, certificates are verified, redirects are not followed, https:// goes through the proxy that is set and no other,
and a body without an end meets a limit.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import socket
import sys
from contextlib import suppress
from ipaddress import ip_network
from typing import Any
from urllib.parse import urlsplit

from app.core.egress import EgressSettings, literal
from app.notify.egress import EgressPolicy
from app.notify.guard import enforce
from app.notify.settings import NotificationSettings

#: Bytes of memory that the library may take; it reads answers to their end.
_MOST_MEMORY = 256 * 2**20
#: Exit statuses; any other one is a crash.
DELIVERED, REFUSED, UNKNOWN_URL, BLOCKED, UNVERIFIED = 0, 3, 4, 5, 6


def main() -> int:
    """Send the notification: a JSON object with `url`, `title`, `body` and `kind`."""
    notification = json.loads(sys.stdin.buffer.read())
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (_MOST_MEMORY, _MOST_MEMORY))
    egress, allowed = EgressSettings.read(), NotificationSettings.read().allowed_networks
    proxies = tuple(map(ip_network, _addresses(egress.proxy.host, egress.proxy.port))) if egress.proxy else ()
    blocked = enforce(EgressPolicy((*allowed, *proxies)))
    import apprise  # noqa: PLC0415 - after the egress policy is in force
    import requests  # noqa: PLC0415

    requests.Session.get_redirect_target = _no_redirect  # type: ignore[assignment]
    if egress.proxy:
        _lead_through(egress, EgressPolicy(allowed), blocked)
    logging.disable(logging.CRITICAL)  # its texts quote URLs
    service = apprise.Apprise()
    if not service.add(notification["url"]):
        return UNKNOWN_URL
    if not all(one.verify_certificate for one in service):
        return UNVERIFIED
    if service.notify(title=notification["title"], body=notification["body"], notify_type=notification["kind"]):
        return DELIVERED
    return BLOCKED if blocked else REFUSED


def _lead_through(settings: EgressSettings, policy: EgressPolicy, blocked: list[str]) -> None:
    """Have https:// go through the proxy, to hosts that may be dialled as far as they are known here."""
    from requests.adapters import HTTPAdapter  # noqa: PLC0415 - as above

    proxy, send = settings.proxy, HTTPAdapter.send
    assert proxy is not None
    assert settings.proxy_url is not None
    url = settings.proxy_url.get_secret_value()

    def send_through(self: HTTPAdapter, request: Any, *rest: Any, **words: Any) -> Any:
        target = urlsplit(request.url)
        host = target.hostname or ""
        if target.scheme != "https" or proxy.spares(host):
            return send(self, request, *rest, **{**words, "proxies": {}})
        if not all(map(policy.allows, _addresses(host, target.port or 443))):
            blocked.append("address")
            raise PermissionError
        return send(self, request, *rest, **{**words, "proxies": {"https": url}})

    HTTPAdapter.send = send_through  # type: ignore[method-assign]


def _addresses(host: str, port: int) -> list[str]:
    """Return a host's addresses; none where its name is not known."""
    if literal(host) is not None:
        return [host]
    try:
        return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return []


def _no_redirect(_session: object, _response: object) -> None:
    """Return the target of a redirect: none, whatever the answer."""


if __name__ == "__main__":
    os._exit(main())  # at once: what the library has left behind could keep a message that was delivered from its end
