"""Settings: what is refused is told in one line without the value, whatever raises, and is not shown either."""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, BeforeValidator, SecretStr

from app.core import config
from app.core.errors import ConfigError

CANARY = "hunter2"


def _raise(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    "validate",
    [
        lambda text: text.encode()[10**9],
        lambda text: {}[text],
        lambda text: None + text,
        lambda text: _raise(RecursionError(text)),
        lambda text: _raise(OverflowError(text)),
        lambda text: int(text),
        lambda text: ip_address(text),
        lambda text: text.encode("ascii").decode("utf-32"),
    ],
)
@pytest.mark.parametrize("where", [BeforeValidator, AfterValidator])
def test_a_librarys_own_exception_is_one_line_with_the_name_and_without_the_value(
    validate: Any, where: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Group(config.Settings):
        one: Annotated[Any, where(validate)] = config.variable("X_ONE", meaning="one")
        two: Any = config.variable("X_TWO", meaning="two")

    monkeypatch.setenv("X_ONE", CANARY)
    with pytest.raises(ConfigError) as refused:
        Group.read()
    assert [problem.partition(":")[0] for problem in refused.value.problems] == ["X_ONE", "X_TWO"]
    assert refused.value.problems[0].startswith("X_ONE: not valid; accepted: ")
    assert CANARY not in str(refused.value)
    assert [row.value for row in config.rows(Group)] == ["not valid", ""]


@pytest.mark.parametrize(
    "text",
    [f"https://u:{CANARY}@h/", f"http://{CANARY}@h:1", f"//x https://:{CANARY}@h", f"ftp://a:{CANARY}@[::1]"],
)
def test_a_login_in_a_url_that_is_no_secret_is_refused_and_not_shown(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Group(config.Settings):
        url: str = config.variable("X_URL", "Y_URL", meaning="where")
        secret: str = config.variable("X_SECRET", meaning="where", secret=True)

    monkeypatch.setenv("Y_URL", text)
    monkeypatch.setenv("X_SECRET", text)
    with pytest.raises(ConfigError) as refused:
        Group.read()
    assert [problem.partition(":")[0] for problem in refused.value.problems] == ["Y_URL"]
    assert [row.value for row in config.rows(Group)] == ["not valid", "set"]
    assert CANARY not in str(refused.value)


@pytest.mark.parametrize("text", ["https://h/a@b", "https://h?x=a@b", "me@example.org", "https://h"])
def test_an_at_sign_elsewhere_is_no_login(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Group(config.Settings):
        url: str = config.variable("X_URL", meaning="where")

    monkeypatch.setenv("X_URL", text)
    assert Group.read().url == text


def test_a_setting_from_a_file_follows_it_and_keeps_its_last_good_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Group(config.Settings):
        number: Annotated[int, BeforeValidator(int)] = config.variable("X_NUMBER", meaning="how many", secret=True)

    file = tmp_path / "number"
    file.write_text("1\n")
    monkeypatch.setenv("X_NUMBER_FILE", str(file))
    settings = Group.read()
    seen = [settings.current("number")]
    for text in ("2", "", "x", "3"):
        file.write_text(text)
        seen.append(settings.current("number"))
    file.unlink()
    seen.append(settings.current("number"))
    assert seen == [1, 2, 2, 2, 3, 3]
    assert settings.number == 1


def test_a_setting_from_the_environment_stays_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    class Group(config.Settings):
        number: Annotated[int, BeforeValidator(int)] = config.variable("X_NUMBER", meaning="how many", secret=True)

    monkeypatch.setenv("X_NUMBER", "1")
    settings = Group.read()
    os.environ["X_NUMBER"] = "2"
    assert settings.current("number") == 1


def test_a_file_for_what_is_no_secret_is_not_read_and_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Group(config.Settings):
        plain: str = config.variable("SB_WORKER_PLAIN", default="a", meaning="")
        token: SecretStr = config.variable("SB_WORKER_TOKEN", default="b", meaning="", secret=True)

    for name in ("SB_WORKER_PLAIN_FILE", "SB_WORKER_TOKEN_FILE"):
        monkeypatch.setenv(name, "/etc/hostname")
    assert config.unknown(Group) == ["SB_WORKER_PLAIN_FILE (did you mean SB_WORKER_PLAIN?)"]
