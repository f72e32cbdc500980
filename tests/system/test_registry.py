"""What is in the folders is in the lists, and the public names stay what they are."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import pytest

import actors
import sinks
from app.core.config import Settings, rows
from app.core.events import Severity
from app.notify.settings import NotificationSettings
from app.notify.sink import Sink
from app.storage.settings import DatabaseSettings, RedisSettings
from app.sweeping.sweeper import Sweep, Sweeper
from app.worker.settings import WorkerSettings
from tests.support.processes import ROOT
from tests.support.rows import FIXED


def declared(package: Any, kind: type) -> list[Any]:
    found = []
    for module in pkgutil.iter_modules(package.__path__):
        content = vars(importlib.import_module(f"{package.__name__}.{module.name}"))
        found += [value for value in content.values() if isinstance(value, kind)]
    return found


def test_every_sweeper_and_every_sink_of_a_file_is_registered() -> None:
    assert {found.name for found in declared(actors, Sweeper)} == {sweeper.name for sweeper in actors.SWEEPERS}
    assert {found.name for found in declared(sinks, Sink)} == {sink.name for sink in sinks.SINKS}


def test_no_room_is_crowded() -> None:
    folders = [folder for top in ("app", "actors", "sinks", "tests") for folder in (ROOT / top).rglob("*/")]
    files = {folder: [*folder.glob("*.py")] for folder in folders if "__pycache__" not in folder.parts}
    assert [folder.name for folder, found in files.items() if len(found) > 18] == []
    assert {path.name for path in (ROOT / "app").glob("*.py")} == {"__init__.py", "actors.py"}


def test_the_public_names_and_cadences_are_these() -> None:
    cadences = {sweeper.name: sweeper.settings.read().tick.total_seconds() for sweeper in actors.SWEEPERS}
    assert cadences == {
        "wraps-expired": 60,
        "secrets-stale": 300,
        "agents-stale": 60,
        "jobs-recovery": 30,
        "discover-scheduler": 30,
        "gitops-poller": 15,
        "gitops-timeout": 60,
        "reveal-sessions-expired": 5,
        "cross-team-fill-window-expired": 30,
        "discover-stuck": 60,
        "sessions-expired": 3600,
    }


@pytest.mark.parametrize(
    ("name", "severity", "title", "detail", "metadata"),
    [
        ("wraps-expired", Severity.INFO, "expired wraps purged", "", {"deleted": 2}),
        (
            "secrets-stale",
            Severity.WARN,
            "discovered secrets marked missing",
            "cutoff=2026-01-01T12:00:00Z",
            {"flipped": 2},
        ),
        (
            "agents-stale",
            Severity.WARN,
            "agents flagged stale (no heartbeat past cutoff)",
            "cutoff=2026-01-01T12:00:00Z",
            {"flipped": 2},
        ),
        (
            "jobs-recovery",
            Severity.WARN,
            "stuck jobs marked expired",
            "claim_expires_at past; agent likely crashed mid-execute",
            {"flipped": 2},
        ),
        ("discover-scheduler", Severity.INFO, "discover jobs enqueued", "", {"enqueued": 2}),
        ("gitops-poller", Severity.INFO, "gitops observations polled", "", {"succeeded": 0, "failed": 0}),
        (
            "gitops-timeout",
            Severity.WARN,
            "gitops observations timed out",
            "flipped 2 row(s) to applied_unverified",
            {"flipped": 2},
        ),
        (
            "reveal-sessions-expired",
            Severity.INFO,
            "reveal sessions expired",
            "",
            {"sessions_swept": 0, "wraps_expired": 0, "wrap_errors": 0},
        ),
        (
            "cross-team-fill-window-expired",
            Severity.INFO,
            "cross_team fill windows expired",
            "",
            {"requests_swept": 2},
        ),
    ],
)
def test_the_words_of_events_are_the_go_workers(
    name: str, severity: Severity, title: str, detail: str, metadata: dict[str, int]
) -> None:

    sweeper = next(found for found in actors.SWEEPERS if found.name == name)
    event = sweeper.done(Sweep(2, cutoff=FIXED))
    assert (event.component, event.severity, event.title, event.detail, dict(event.metadata)) == (
        name,
        severity,
        title,
        detail,
        metadata,
    )


def test_every_variable_has_a_meaning_and_one_owner() -> None:
    groups: list[type[Settings]] = [
        WorkerSettings,
        DatabaseSettings,
        RedisSettings,
        NotificationSettings,
        *(s.settings for s in actors.SWEEPERS),
        *(s.settings for s in sinks.SINKS),
    ]
    shown = list(rows(*groups))
    names = [name for row in shown for name in (row.name, *row.twins)]
    assert len(names) == len(set(names))
    assert all(row.meaning for row in shown)
    assert not [name for name in names if name.endswith("_FILE")]  # that ending means: read the value from a file
