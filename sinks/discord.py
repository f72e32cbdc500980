"""discord: an embed by a channel's webhook."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from app.core.config import variable
from app.core.errors import Fault, SinkRejected, SinkUnavailable
from app.core.events import Notification
from app.notify.format import body_lines, headline, timestamp, to_json, truncate
from app.notify.sink import (
    JSON,
    TRANSIENT,
    Answer,
    Filter,
    Loudness,
    SecretUrl,
    Transport,
    UrlSettings,
    at_least,
    judge,
    only,
    seconds,
    sink,
)

#: Discord's limits, code points.
_CONTENT, _TITLE, _DESCRIPTION = 2000, 256, 4096
_COLORS = {"info": 0x3498DB, "warn": 0xF1C40F, "error": 0xE74C3C}


class Discord(UrlSettings):
    """The channel."""

    url: SecretUrl | None = variable(
        "SB_NOTIFICATION_DISCORD_URL", default=None, secret=True, meaning="a Discord channel's webhook"
    )
    min_severity: Loudness = at_least("DISCORD", "warn")
    sweepers: Filter = only("DISCORD")


@sink("discord", settings=Discord)
async def discord(notification: Notification, settings: Discord, receiver: str, transport: Transport) -> None:
    """Post one embed; nobody is mentioned, whatever the text says."""
    del receiver
    content = to_json(message(notification))
    answer = await transport.post(settings.address, content, JSON)
    if answer.status == HTTPStatus.NOT_FOUND:  # Discord's "unknown webhook": it was deleted
        raise SinkRejected(Fault.CLIENT_ERROR, str(answer.status), off=True)
    if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
        raise SinkUnavailable(Fault.RATE_LIMITED, str(answer.status), retry_after=_retry_after(answer, transport))
    judge(answer, transport.now, TRANSIENT)


def message(notification: Notification) -> dict[str, Any]:
    """Return the body."""
    event = notification.event
    embed = {
        "title": truncate(headline(notification), _TITLE),
        "description": truncate("\n".join(body_lines(notification)) or event.title, _DESCRIPTION),
        "color": _COLORS[event.severity],
        "timestamp": timestamp(notification.time),
        "footer": {"text": f"{event.component} · {notification.id}"},
    }
    return {"content": truncate(headline(notification), _CONTENT), "embeds": [embed], "allowed_mentions": {"parse": []}}


def _retry_after(answer: Answer, transport: Transport) -> float | None:
    """Return the seconds to wait, by the headers if they say: the body's number was milliseconds once."""
    if (header := answer.retry_after(transport.now)) is not None:
        return header
    reset = Answer(answer.status, {"retry-after": answer.headers.get("x-ratelimit-reset-after", "")}, b"")
    if (wait := reset.retry_after(transport.now)) is not None:
        return wait
    return seconds(answer.json.get("retry_after"))
