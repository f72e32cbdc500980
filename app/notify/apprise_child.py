"""What runs Apprise: reads one notification from stdin, tells one service, and says by its exit status how that went.

The URL comes by stdin, not by arguments that others could list. What holds for every other sink holds here: each
address that is dialled passes the guard, redirects are not followed, proxies of the environment are not asked, and a
body without an end meets a limit.
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
_DELIVERED, _REFUSED, _UNKNOWN_URL, _BLOCKED = 0, 3, 4, 5


def main() -> int:
    """Tell the service."""
    given = json.loads(sys.stdin.buffer.read())
    egress = EgressPolicy(NotificationSettings.read().allowed_networks)
    blocked = _guard_sockets(egress)
    _stay_small_and_direct()
    import apprise  # noqa: PLC0415 - after the sockets are guarded
    import requests  # noqa: PLC0415

    requests.Session.get_redirect_target = _nowhere  # type: ignore[assignment]
    logging.disable(logging.CRITICAL)  # its texts quote URLs
    service = apprise.Apprise()
    if not service.add(given["url"]):
        return _UNKNOWN_URL
    done = service.notify(title=given["title"], body=given["body"], notify_type=given["kind"])
    return _DELIVERED if done else _BLOCKED if blocked else _REFUSED


def _guard_sockets(egress: EgressPolicy) -> list[bool]:
    """Refuse connections that the guard does not let through; the list is not empty once one was."""
    blocked: list[bool] = []

    class Guarded(socket.socket):
        def connect(self, address: Any) -> None:
            super().connect(self._judged(address))

        def connect_ex(self, address: Any) -> int:
            return super().connect_ex(self._judged(address))

        def _judged(self, address: Any) -> Any:
            if self.family not in (socket.AF_INET, socket.AF_INET6):
                return address
            found = socket.getaddrinfo(address[0], address[1], self.family, socket.SOCK_STREAM)
            if not egress.allows(str(found[0][4][0])):
                blocked.append(True)
                raise PermissionError
            return found[0][4]

    socket.socket = Guarded  # type: ignore[misc]
    return blocked


def _stay_small_and_direct() -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (_MOST_MEMORY, _MOST_MEMORY))


def _nowhere(_session: object, _response: object) -> None:
    """Say that an answer redirects to nowhere."""


if __name__ == "__main__":
    sys.exit(main())
