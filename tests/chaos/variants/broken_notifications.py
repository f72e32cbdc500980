"""Defects of a notifier, each a function that patches this process."""

from __future__ import annotations

import asyncio
import importlib
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from app.core.errors import SinkRejected, SinkUnavailable

if TYPE_CHECKING:
    from app.core.events import Notification
    from app.notify.routing import Target
    from app.notify.sink import Transport


def marked_first() -> None:
    """Have an attempt at the webhook end as delivered at once, and be made afterwards."""
    from app.notify.delivery import send  # noqa: PLC0415 - as late as the program itself

    attempt = send.attempt
    later: set[asyncio.Future[None]] = set()

    async def marked(target: Target, notification: Notification, transport: Transport, seconds: float) -> None:
        async def sent() -> None:
            with suppress(SinkRejected, SinkUnavailable):
                await attempt(target, notification, transport, seconds)

        if target.name == "webhook":
            later.add(asyncio.ensure_future(sent()))
        else:
            await attempt(target, notification, transport, seconds)

    send.attempt = marked


def new_id() -> None:
    """Have each request to the webhook bear an id that nobody has seen."""
    module: Any = importlib.import_module("sinks.webhook")
    signed = module.signed
    module.signed = lambda _identity, *words: signed(str(uuid.uuid4()), *words)
