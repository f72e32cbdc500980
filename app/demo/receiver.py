"""The receiver of the demo's notifications: a local HTTP server that keeps the latest of them for the view.

Now and then it is out of order for a few seconds, so that retries and catching up can be seen.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Any

from app.demo.web import Answer, Request, Web

#: Seconds that it is out of order, of how many, from which second on.
DOWN_SECONDS, EVERY_SECONDS, FIRST_SECONDS = 8.0, 40.0, 12.0
#: The paths, each for the sink of its name.
WEBHOOK, SLACK = "/webhook", "/slack"


class Receiver(Web):
    """The server, on a free port of the loopback interface."""

    def __init__(self) -> None:
        self.arrived: Counter[str] = Counter()
        self.lines: deque[str] = deque(maxlen=6)
        self.refused = 0
        self._started = time.monotonic()
        super().__init__(self._answer)

    @property
    def down(self) -> bool:
        """Whether it is out of order now."""
        passed = time.monotonic() - self._started - FIRST_SECONDS
        return passed >= 0 and passed % EVERY_SECONDS < DOWN_SECONDS

    def variables(self) -> Mapping[str, str]:
        """Return the settings of a worker that notifies it."""
        return {
            "SB_NOTIFICATION_WEBHOOK_URL": self.url + WEBHOOK,
            "SB_NOTIFICATION_SLACK_URL": self.url + SLACK,
            "SB_NOTIFICATION_ALLOWED_NETWORKS": "127.0.0.0/8",
            "SB_NOTIFICATION_REPEAT_INTERVAL": "10s",
            "SB_NOTIFICATION_PACE": "3s",
            "SB_NOTIFICATION_RELAY_INTERVAL": "1s",
            "SB_NOTIFICATION_BREAKER_COOLDOWN": "3s",
        }

    def _answer(self, request: Request) -> Answer:
        if self.down:
            self.refused += 1
            return Answer(HTTPStatus.SERVICE_UNAVAILABLE, {})
        sink = request.path.strip("/")
        self.arrived[sink] += 1
        self.lines.append(f"{datetime.now().astimezone():%H:%M:%S} {sink:<8} {_text(json.loads(request.body))}")
        return Answer(HTTPStatus.OK, {"ok": True})


def _text(content: Mapping[str, Any]) -> str:
    if "text" in content:
        return str(content["text"])
    numbers = ", ".join(f"{name}={number:,}" for name, number in content.get("metadata", {}).items())
    return f"{content['title']} ({numbers})"
