"""Variables with values that the Go worker passes over: each row of docs/go-settings.md."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from actors.gitops_poller import GitopsPoller
from actors.wraps_expired import WrapsExpired
from app.core import config
from app.core.config import Settings
from app.core.errors import ConfigError
from app.core.values import LogLevel
from app.storage.settings import DatabaseSettings, RedisSettings
from app.worker.settings import WorkerSettings
from tests.storage.go_settings import rows

CANARY = "hunter2"
Case = tuple[type[Settings], str, list[tuple[str, object]]]
# A group and its field, and what becomes of texts; a text in place of it is what ends the boot.
CASES: dict[str, Case] = {
    "DATABASE_MAX_CONNS": (DatabaseSettings, "max_connections", [(text, None) for text in ("0", "-1", "ten", CANARY)]),
    "DATABASE_CONN_LIFETIME": (
        DatabaseSettings,
        "connection_lifetime",
        [(text, timedelta(minutes=30)) for text in ("0", "-1s", "30", CANARY)],
    ),
    "REDIS_POOL_SIZE": (RedisSettings, "pool_size", [(text, None) for text in ("0", "-1", "1.5", CANARY)]),
    "REDIS_DIAL_TIMEOUT": (RedisSettings, "dial_timeout", [(text, None) for text in ("0s", "-1s", "5", CANARY)]),
    "LOG_LEVEL": (WorkerSettings, "log_level", [(text, LogLevel.INFO) for text in ("verbose", "trace", CANARY)]),
    "SB_WORKER_GITOPS_BATCH_SIZE": (GitopsPoller, "batch_size", [("0", 10), ("-5", 10), (CANARY, "not an integer")]),
    "any interval": (
        WrapsExpired,
        "interval",
        [("500ms", timedelta(seconds=1)), ("0", "must be more than 0"), ("-1s", "must be more than 0")],
    ),
}
ELSEWHERE = ("SB_WORKER_LOCAL_ADDR", "SB_WORKER_GITOPS_HTTP_TIMEOUT", "SB_DISCOVER_TARGETS_JSON")


@pytest.fixture(autouse=True)
def _servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://u@h/d")
    monkeypatch.setenv("REDIS_URL", "redis://h")


def test_each_row_has_its_cases() -> None:
    assert {row[0] for row in rows("Values that the Go worker passes over")} == {*CASES, *ELSEWHERE}


@pytest.mark.parametrize(
    ("name", "text", "outcome"), [(name, *case) for name, (_, _, found) in CASES.items() for case in found]
)
def test_a_value_that_go_passes_over_is_a_warning_or_the_end(
    name: str, text: str, outcome: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, field, _ = CASES[name]
    name = "SB_SWEEP_WRAPS_INTERVAL" if name == "any interval" else name
    monkeypatch.setenv(name, text)
    if type(outcome) is str:
        with pytest.raises(ConfigError, match=f"{name}: {outcome}"):
            group.read()
        return
    settings = group.read()
    assert getattr(settings, field) == outcome
    (warning,) = settings.warnings
    assert warning.startswith(f"{name}: ")
    assert CANARY not in warning
    (shown,) = [row.value for row in config.rows(group) if row.name == name]
    assert shown == "not valid"  # it may be a secret under the wrong name


def test_valid_values_are_taken_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "DATABASE_MAX_CONNS": "3",
        "DATABASE_CONN_LIFETIME": "1h",
        "REDIS_POOL_SIZE": "20",
        "REDIS_DIAL_TIMEOUT": "1s",
        "LOG_LEVEL": "WARNING",
        "SB_SWEEP_WRAPS_INTERVAL": "1s",
    }.items():
        monkeypatch.setenv(name, value)
    groups = (DatabaseSettings, RedisSettings, WorkerSettings, WrapsExpired)
    assert [warning for group in groups for warning in group.read().warnings] == []
