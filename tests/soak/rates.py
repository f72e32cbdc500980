"""Ten times the usual rates: each default interval divided by ten, and no shorter than the grammar takes."""

from __future__ import annotations

from datetime import timedelta

from actors import SWEEPERS
from actors.discover_scheduler import LOOK_EVERY
from app.core.config import name_of
from app.core.values import parse_duration
from app.notify.settings import NotificationSettings
from app.storage.settings import DatabaseSettings

TIMES = 10
#: Of a cadence, by its grammar.
SHORTEST = timedelta(seconds=1)
#: What a sweeper that is off by default would have, by the others like it.
USUAL = {"sessions-expired": timedelta(minutes=1), "discover-scheduler": LOOK_EVERY}
#: How long the ledger and the outbox are kept, so that both have stopped growing long before a soak is half over.
KEPT = timedelta(minutes=2)


def cadences() -> dict[str, timedelta]:
    """Return how often each sweeper is run in a soak."""
    return {
        sweeper.name: max(SHORTEST, (USUAL.get(sweeper.name) or _default(sweeper.settings, "interval")) / TIMES)
        for sweeper in SWEEPERS
    }


def settings() -> dict[str, str]:
    """Return the variables of a worker that runs at these rates."""
    every = cadences()
    return {
        **{name_of(sweeper.settings, "interval"): _text(every[sweeper.name]) for sweeper in SWEEPERS},
        **_tenths(NotificationSettings, "repeat", "pace", "cooldown", "remind_after"),
        **_tenths(DatabaseSettings, "connection_lifetime"),
        name_of(NotificationSettings, "relay"): _text(max(SHORTEST, _default(NotificationSettings, "relay") / TIMES)),
        "SB_SWEEP_AGENTS_STALE_AFTER": "30s",
        "SB_WORKER_LEDGER_RETENTION": _text(KEPT),
        "SB_NOTIFICATION_RETENTION": _text(KEPT),
        "SB_NOTIFICATION_DEAD_RETENTION": _text(KEPT),
    }


def _tenths(group: type, *fields: str) -> dict[str, str]:
    return {name_of(group, field): _text(_default(group, field) / TIMES) for field in fields}


def _default(group: type, field: str) -> timedelta:
    return parse_duration(str(group.model_fields[field].default))  # type: ignore[attr-defined]


def _text(length: timedelta) -> str:
    return f"{length // timedelta(milliseconds=1)}ms"
