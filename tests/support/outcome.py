"""One attempt of one sink against a real receiver, as the notifier makes it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from app.core.errors import SinkRejected, SinkUnavailable
from app.core.events import Event, Kind, Notification, Severity, Tally
from app.notify.delivery.send import attempt
from app.notify.digest import digest
from app.notify.routing import Target, targets
from app.notify.settings import NotificationSettings
from app.notify.transport import NetworkTransport
from sinks import SINKS
from tests.support.waiting import HUNG

LOOPBACK = {"SB_NOTIFICATION_ALLOWED_NETWORKS": "127.0.0.0/8"}
WHEN = datetime(2026, 11, 23, 9, 0, 0, 120_000, tzinfo=UTC)
NOTE = Notification(
    "0b5c7c0e-1111-4222-8333-444455556666",
    WHEN,
    Event("agents-stale", Severity.WARN, "agents flagged stale", "cutoff=2026-11-23T08:55:00Z", {"flipped": 3}),
)
FAILED = Notification(
    NOTE.id,
    WHEN,
    Event("wraps-expired", Severity.ERROR, "delete expired wraps failed", "Timeout 57014", kind=Kind.FAILED),
)
RECOVERED = Notification(
    NOTE.id, WHEN, Event("wraps-expired", Severity.INFO, "sweep recovered", "", {"failed_attempts": 2}, Kind.RECOVERED)
)


def configured(monkeypatch: pytest.MonkeyPatch, env: Mapping[str, str]) -> list[Target]:
    """Return the receivers that these variables configure, the log left out."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return [target for target in targets(SINKS, [sink.settings.read() for sink in SINKS]) if target.sink.name != "noop"]


def outcome(target: Target, notification: Notification = NOTE, seconds: float = HUNG) -> str:
    """Make one attempt and return how it ended: delivered, or `rejected|unavailable fault code`, `off` and the wish."""

    async def once() -> str:
        network = NetworkTransport(NotificationSettings.read())
        try:
            await attempt(target, notification, network, seconds)
        except SinkRejected as error:
            return f"rejected {error.fault} {error.code}{' off' if error.off else ''}".strip()
        except SinkUnavailable as error:
            wish = f" after {error.retry_after:g}" if error.retry_after is not None else ""
            return f"unavailable {error.fault} {error.code}{wish}".strip().replace("  ", " ")
        finally:
            await network.close()
        return "delivered"

    return asyncio.run(once())


def digest_note(events: int = 40) -> Notification:
    """Return a digest with many tallies and long texts."""
    title = "title <!channel> & " + "x" * 300
    tallies = [Tally(f"sweeper-{n}", Severity.WARN, title, 1, WHEN, WHEN, {"n": n}) for n in range(events)]
    return Notification(NOTE.id, WHEN, digest(tallies, NOTE.event))


Json = Any
