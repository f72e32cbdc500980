"""The process that runs Apprise: reads one notification from stdin, sends it, and reports the outcome as exit status.

The URL comes by stdin, because arguments can be listed by others. What holds for every other sink holds here: only
addresses that the egress policy allows are dialled, nothing leaves in the clear but to networks that are allowed for
that, redirects are not followed, proxies of the environment are not used, and a body without an end meets a limit.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
from contextlib import suppress

from app.notify.egress import EgressPolicy
from app.notify.guard import enforce
from app.notify.settings import NotificationSettings

#: Bytes of memory that the library may take; it reads answers to their end.
_MOST_MEMORY = 256 * 2**20
#: Exit statuses; any other one is a crash.
DELIVERED, REFUSED, UNKNOWN_URL, BLOCKED = 0, 3, 4, 5


def main() -> int:
    """Send the notification: a JSON object with `url`, `title`, `body` and `kind`."""
    notification = json.loads(sys.stdin.buffer.read())
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (_MOST_MEMORY, _MOST_MEMORY))
    blocked = enforce(EgressPolicy(NotificationSettings.read().allowed_networks))
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


def _no_redirect(_session: object, _response: object) -> None:
    """Return the target of a redirect: none, whatever the answer."""


if __name__ == "__main__":
    sys.exit(main())
