"""What a deployment is called."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from app.core import config
from app.core.errors import ConfigError
from app.core.role import DeploymentSettings, usual_name
from app.notify.settings import NotificationSettings
from app.worker.settings import WorkerSettings

NOWHERE = Path("/nowhere")


def test_without_a_name_it_is_the_namespace_and_else_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("POD_NAMESPACE", raising=False)
    namespace = tmp_path / "namespace"
    assert usual_name(namespace) == socket.gethostname()[:63]
    namespace.write_text("secrets-bridge\n", encoding="utf-8")
    assert usual_name(namespace) == "secrets-bridge"
    monkeypatch.setenv("POD_NAMESPACE", "from-the-pod")
    assert usual_name(namespace) == "from-the-pod"


@pytest.mark.parametrize("odd", ["x" * 64, "a\tb", "\x1b[31m"])
def test_what_is_no_name_is_passed_over(monkeypatch: pytest.MonkeyPatch, odd: str) -> None:
    monkeypatch.setenv("POD_NAMESPACE", odd)
    assert usual_name(NOWHERE) == socket.gethostname()[:63]


@pytest.mark.parametrize("name", ["x" * 64, "a\tb", "a\nb", "\x1b[31m", " a", "a "])
def test_what_is_no_name_is_refused_once(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("SB_WORKER_NAME", name)
    with pytest.raises(ConfigError) as refused:
        config.load(WorkerSettings, NotificationSettings)
    (problem,) = refused.value.problems
    assert problem.startswith("SB_WORKER_NAME: not a name; accepted: 1 to 63 printable characters")


@pytest.mark.parametrize("name", ["x" * 63, "prod eu", "Überwachung", "a"])
def test_printable_names_are_taken(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("SB_WORKER_NAME", name)
    assert DeploymentSettings.read().deployment == WorkerSettings.read().deployment == name


def test_it_is_one_variable_wherever_it_is_read() -> None:
    published = [one.names for one in config.variables(WorkerSettings, NotificationSettings)]
    assert published.count(("SB_WORKER_NAME",)) == 1
