"""teams: an Adaptive Card to a Microsoft Teams workflow."""

from __future__ import annotations

from typing import Any

from app.core.config import variable
from app.core.events import Note
from app.notify.format import cut, dump, headline, lines, timestamp
from app.notify.sink import JSON, PASSING, Filter, Loudness, SecretUrl, UrlSettings, Wire, at_least, judge, only, sink

#: Teams refuses cards above 28 KiB, measured after it has expanded them and after it has said that all is well.
_MOST_BYTES = 18 * 1024
_TITLE = 256
_COLORS = {"info": "Good", "warn": "Warning", "error": "Attention"}


class Teams(UrlSettings):
    """Where."""

    url: SecretUrl | None = variable(
        "SB_NOTIFICATION_TEAMS_URL", default=None, secret=True, meaning="a Teams workflow's URL"
    )
    min_severity: Loudness = at_least("TEAMS", "warn")
    sweepers: Filter = only("TEAMS")


@sink("teams", settings=Teams)
async def teams(note: Note, settings: Teams, receiver: str, wire: Wire) -> None:
    """Post one card."""
    del receiver
    judge(await wire.post(settings.address, message(note), JSON), wire.now, PASSING)


def message(note: Note) -> bytes:
    """Give the body, its lines cut until it is small enough."""
    said = list(lines(note)) or [note.event.title]
    while len(content := dump(_card(note, said))) > _MOST_BYTES:
        said = [*said[: len(said) // 2], "…"] if len(said) > 1 else [cut(said[0], len(said[0]) // 2)]
    return content


def _card(note: Note, said: list[str]) -> dict[str, Any]:
    event = note.event
    title = {"text": cut(headline(event), _TITLE), "weight": "Bolder", "size": "Medium", "style": "heading"}
    title["color"] = _COLORS[event.severity]
    texts = [title, *({"text": line} for line in said)]
    texts.append({"text": f"{event.component} · {timestamp(note.time)} · {note.id}", "size": "Small"})
    content = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.2",
        "body": [{"type": "TextBlock", "wrap": True, **text} for text in texts],
        "msteams": {"width": "full"},
    }
    kind = "application/vnd.microsoft.card.adaptive"
    return {"type": "message", "attachments": [{"contentType": kind, "contentUrl": None, "content": content}]}
