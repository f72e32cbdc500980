"""What runs Apprise: reads one notification from stdin, tells one service, and says by its exit status how that went.

The URL comes by stdin, not by arguments that others could list. Every address that is dialled passes the guard.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
from typing import Any

from app.notify.guard import Guard
from app.notify.settings import NotificationSettings

_DELIVERED, _REFUSED, _UNKNOWN_URL, _BLOCKED = 0, 3, 4, 5


def main() -> int:
    """Tell the service."""
    given = json.loads(sys.stdin.buffer.read())
    guard = Guard(NotificationSettings.read().allowed_networks)
    blocked = _guard_sockets(guard)
    import apprise  # noqa: PLC0415 - after the sockets are guarded

    logging.disable(logging.CRITICAL)  # its texts quote URLs
    service = apprise.Apprise()
    if not service.add(given["url"]):
        return _UNKNOWN_URL
    done = service.notify(title=given["title"], body=given["body"], notify_type=given["kind"])
    return _DELIVERED if done else _BLOCKED if blocked else _REFUSED


def _guard_sockets(guard: Guard) -> list[bool]:
    """Refuse connections that the guard does not let through; the list is not empty once one was."""
    blocked: list[bool] = []

    class Guarded(socket.socket):
        def connect(self, address: Any) -> None:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                found = socket.getaddrinfo(address[0], address[1], self.family, socket.SOCK_STREAM)
                address = found[0][4]
                if not guard.lets(str(address[0])):
                    blocked.append(True)
                    raise PermissionError
            super().connect(address)

    socket.socket = Guarded  # type: ignore[misc]
    return blocked


if __name__ == "__main__":
    sys.exit(main())
