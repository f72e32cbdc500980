"""The process that runs Apprise: reads one notification from stdin, sends it, and reports the outcome as exit status.

The URL comes by stdin, because arguments can be listed by others. What holds for every other sink holds here: only
addresses that the egress policy allows are dialled, redirects are not followed, proxies of the environment are not
used, and a body without an end meets a limit.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import socket
import sys
from contextlib import suppress
from typing import Any

from app.notify.egress import EgressPolicy
from app.notify.settings import NotificationSettings

#: Bytes of memory that the library may take; it reads answers to their end.
_MOST_MEMORY = 256 * 2**20
#: Exit statuses; any other one is a crash.
DELIVERED, REFUSED, UNKNOWN_URL, BLOCKED = 0, 3, 4, 5


def main() -> int:
    """Send the notification: a JSON object with `url`, `title`, `body` and `kind`."""
    notification = json.loads(sys.stdin.buffer.read())
    blocked = _enforce(EgressPolicy(NotificationSettings.read().allowed_networks))
    _ignore_proxies()
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (_MOST_MEMORY, _MOST_MEMORY))
    import apprise  # noqa: PLC0415 - after the egress policy is in force
    import requests  # noqa: PLC0415

    requests.Session.get_redirect_target = _no_redirect  # type: ignore[assignment]
    logging.disable(logging.CRITICAL)  # its texts quote URLs
    service = apprise.Apprise()
    if not service.add(notification["url"]):
        return UNKNOWN_URL
    if service.notify(title=notification["title"], body=notification["body"], notify_type=notification["kind"]):
        return DELIVERED
    return BLOCKED if blocked else REFUSED


def _enforce(egress: EgressPolicy) -> list[str]:
    """Make every socket of this process keep to the policy; return the list that refused addresses are added to."""
    blocked: list[str] = []

    class EgressSocket(socket.socket):
        def connect(self, address: Any) -> None:
            super().connect(self._allowed(address))

        def connect_ex(self, address: Any) -> int:
            return super().connect_ex(self._allowed(address))

        def _allowed(self, address: Any) -> Any:
            if self.family not in (socket.AF_INET, socket.AF_INET6):
                return address
            resolved = socket.getaddrinfo(address[0], address[1], self.family, socket.SOCK_STREAM)[0][4]
            if not egress.allows(str(resolved[0])):
                blocked.append(str(resolved[0]))
                raise PermissionError
            return resolved

    socket.socket = EgressSocket  # type: ignore[misc]
    return blocked


def _ignore_proxies() -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]


def _no_redirect(_session: object, _response: object) -> None:
    """Return the target of a redirect: none, whatever the answer."""


if __name__ == "__main__":
    sys.exit(main())
