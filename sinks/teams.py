"""teams: an Adaptive Card to a Microsoft Teams workflow."""

from __future__ import annotations

from typing import Any

from app.core.config import variable
from app.core.events import Notification
from app.notify.format import body_lines, headline, timestamp, to_json, truncate
from app.notify.sink import (
    JSON,
    TRANSIENT,
    Filter,
    Loudness,
    SecretUrl,
    Transport,
    UrlSettings,
    at_least,
    judge,
    only,
    sink,
)

#: Teams drops cards above 28 KiB, measured after it has expanded them and after it has answered that all is well.
_MOST_BYTES = 18 * 1024
_TITLE = 256
_COLORS = {"info": "Good", "warn": "Warning", "error": "Attention"}


class Teams(UrlSettings):
    """The workflow."""

    url: SecretUrl | None = variable(
        "SB_NOTIFICATION_TEAMS_URL", default=None, secret=True, meaning="a Teams workflow's URL"
    )
    min_severity: Loudness = at_least("TEAMS", "warn")
    sweepers: Filter = only("TEAMS")


@sink("teams", settings=Teams)
async def teams(notification: Notification, settings: Teams, receiver: str, transport: Transport) -> None:
    """Post one card."""
    del receiver
    judge(await transport.post(settings.address, message(notification), JSON), transport.now, TRANSIENT)


def message(notification: Notification) -> bytes:
    """Return the body, its lines cut until it is small enough."""
    lines = list(body_lines(notification)) or [notification.event.title]
    while len(content := to_json(_card(notification, lines))) > _MOST_BYTES:
        lines = [*lines[: len(lines) // 2], "…"] if len(lines) > 1 else [truncate(lines[0], len(lines[0]) // 2)]
    return content


def _card(notification: Notification, lines: list[str]) -> dict[str, Any]:
    event = notification.event
    title = {"text": truncate(headline(notification), _TITLE), "weight": "Bolder", "size": "Medium", "style": "heading"}
    title["color"] = _COLORS[event.severity]
    texts = [title, *({"text": line} for line in lines)]
    texts.append({"text": f"{event.component} · {timestamp(notification.time)} · {notification.id}", "size": "Small"})
    content = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.2",
        "body": [{"type": "TextBlock", "wrap": True, **text} for text in texts],
        "msteams": {"width": "full"},
    }
    kind = "application/vnd.microsoft.card.adaptive"
    return {"type": "message", "attachments": [{"contentType": kind, "contentUrl": None, "content": content}]}
