"""discord: an embed by a channel's webhook."""

from __future__ import annotations

from typing import Any

from app.core.config import variable
from app.core.errors import Fault, SinkRejected, SinkUnavailable
from app.core.events import Note
from app.notify.format import cut, dump, headline, lines, timestamp
from app.notify.sink import (
    JSON,
    PASSING,
    Answer,
    Filter,
    Loudness,
    SecretUrl,
    UrlSettings,
    Wire,
    at_least,
    judge,
    only,
    sink,
)

#: Discord's limits, code points.
_CONTENT, _TITLE, _DESCRIPTION = 2000, 256, 4096
_COLORS = {"info": 0x3498DB, "warn": 0xF1C40F, "error": 0xE74C3C}
_NOT_FOUND, _TOO_MANY = 404, 429


class Discord(UrlSettings):
    """Where."""

    url: SecretUrl | None = variable(
        "SB_NOTIFICATION_DISCORD_URL", default=None, secret=True, meaning="a Discord channel's webhook"
    )
    min_severity: Loudness = at_least("DISCORD", "warn")
    sweepers: Filter = only("DISCORD")


@sink("discord", settings=Discord)
async def discord(note: Note, settings: Discord, receiver: str, wire: Wire) -> None:
    """Post one embed; nobody is mentioned, whatever the text says."""
    del receiver
    content = dump(message(note))
    answer = await wire.post(settings.address, content, JSON)
    if answer.status == _NOT_FOUND:  # Discord's "unknown webhook": it was deleted
        raise SinkRejected(Fault.CLIENT_ERROR, str(_NOT_FOUND), off=True)
    if answer.status == _TOO_MANY:
        raise SinkUnavailable(Fault.RATE_LIMITED, str(_TOO_MANY), retry_after=_wish(answer, wire))
    judge(answer, wire.now, PASSING)


def message(note: Note) -> dict[str, Any]:
    """Give the body."""
    event = note.event
    embed = {
        "title": cut(headline(event), _TITLE),
        "description": cut("\n".join(lines(note)) or event.title, _DESCRIPTION),
        "color": _COLORS[event.severity],
        "timestamp": timestamp(note.time),
        "footer": {"text": f"{event.component} · {note.id}"},
    }
    return {"content": cut(headline(event), _CONTENT), "embeds": [embed], "allowed_mentions": {"parse": []}}


def _wish(answer: Answer, wire: Wire) -> float | None:
    """Prefer the headers: the unit of the body's number was milliseconds once."""
    if (header := answer.retry_after(wire.now)) is not None:
        return header
    reset = Answer(answer.status, {"retry-after": answer.headers.get("x-ratelimit-reset-after", "")}, b"")
    if (seconds := reset.retry_after(wire.now)) is not None:
        return seconds
    said = answer.json.get("retry_after")
    return float(said) if isinstance(said, int | float) else None
