"""What is refused, remarked on or shown of settings holds no value: each variable wrong, or in a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import SWEEPERS
from app.core import config
from app.core.errors import ConfigError
from app.worker.loading import groups, load
from sinks import SINKS
from tests.leaks.canaries import Canaries
from tests.leaks.forms import Find, Forms

GROUPS = groups(SWEEPERS, SINKS)
#: Every name, and whether it is a secret's.
NAMES = {name: own.secret for own in config.variables(*GROUPS) for name in own.names}
SERVERS = {"DATABASE_URL": "postgres://127.0.0.1/d", "REDIS_URL": "redis://127.0.0.1"}
#: Other variables without which some are not looked at.
WITH = {
    "SB_ENV": "dev",
    "SB_WORKER_GITOPS_ENABLED": "true",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318",
    "SB_NOTIFICATION_EMAIL_HOST": "mail.example.org",
    "SB_NOTIFICATION_EMAIL_FROM": "worker@example.org",
    "SB_NOTIFICATION_EMAIL_TO": "somebody@example.org",
    "SB_NOTIFICATION_WEBHOOK_URL": "https://example.org/",
}
BACKENDS = ("local", "vault-transit", "aws-kms")


def _wrong(new: str) -> Iterator[str]:
    """Yield a canary in the dress of everything that settings may be; first as what many of them take."""
    yield from (new, f"-{new}", f"https://{new}.example/{new}?{new}", json.dumps({new: new}))
    yield from (f"{new} {new}", f"1{new}", f"{new},-{new}", f"{new}=,{new}", f"{new}@{new}", f"{new}:{new}")
    yield from (f"http://u:{new}@10.0.0.1/#{new}", f"{new}://{new}:99999", f"/{new}", f"unix:///{new}")
    yield from (f"10.0.0.1/{new}", f"[{new}", f"%{new}", json.dumps([{"provider": new, "cluster": new}]))
    yield from (f"{{{new}", f'"{new}', f"whsec_{new}", f"postgres://{new}", f"redis://:{new}@/{new}", f"ü{new}")


FORMS = len(list(_wrong("")))
#: So many forms are tried with each variable by itself, the others with all of them at once.
ALONE = 3


def _problems() -> Iterator[str]:
    """Yield what is refused of the settings, or remarked on."""
    try:
        loaded = load(SWEEPERS, SINKS)
    except ConfigError as error:
        yield str(error)
    else:
        yield from loaded.warnings
        yield from (warning for group in loaded.sweepers for warning in group.warnings)
        yield repr(loaded.database) + repr(loaded.redis) + repr(loaded.tracing.headers)


def _shown() -> Iterator[str]:
    """Yield what is shown of all settings, but values that are no secrets and are taken: those are to be seen."""
    yield from config.unknown(*GROUPS)
    secret = {own.names[0] for own in config.variables(*GROUPS) if own.secret}
    for row in config.rows(*GROUPS):
        yield str(row if row.name in secret or row.value == "not valid" else row._replace(value=""))


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in {**SERVERS, **WITH}.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize("form", range(ALONE))
def test_a_wrong_value_is_not_quoted(env: pytest.MonkeyPatch, form: int) -> None:
    canaries = Canaries({name: Canaries()[name] for name in NAMES})
    forms, found = Forms(canaries), list[Find]()
    for name in NAMES:
        with env.context() as patch:
            patch.setenv("SB_KMS_BACKEND", BACKENDS[1])
            patch.setenv(name, list(_wrong(canaries[name]))[form])
            found += [find for text in _problems() for find in forms.find(name, text)]
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize("in_files", [False, True], ids=["variables", "files"])
@pytest.mark.parametrize("form", range(FORMS))
def test_no_wrong_value_of_all_at_once_is_quoted_or_shown(
    env: pytest.MonkeyPatch, tmp_path: Path, form: int, in_files: bool
) -> None:
    canaries = Canaries()
    for name, secret in NAMES.items():
        value = list(_wrong(canaries[name]))[form]
        if in_files and secret:
            env.delenv(name, raising=False)
            path = tmp_path / name
            path.write_text(value)
            env.setenv(f"{name}_FILE", str(path))
        elif name not in WITH:
            env.setenv(name, value)
    found = Forms(canaries).find("settings", "\n".join((*_problems(), *_shown())))
    assert not found, "\n".join(map(str, found))


def test_the_path_of_a_file_is_not_quoted(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    canaries = Canaries()
    directory = tmp_path / canaries["path"]
    directory.mkdir()
    (directory / "bytes").write_bytes(b"\xff" + canaries["content"].encode())
    for path in (directory, directory / "none", directory / "bytes"):
        for name, secret in NAMES.items():
            if secret:
                env.delenv(name, raising=False)
                env.setenv(f"{name}_FILE", str(path))
        assert not Forms(canaries).find("settings", "\n".join((*_problems(), *_shown())))
