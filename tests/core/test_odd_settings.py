"""Whatever is set, reading it ends in settings or in lines about it, and never shows a value that is refused."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import AfterValidator, model_validator

from actors import SWEEPERS
from app.core import config
from app.core.config import Settings, variable
from app.core.errors import ConfigError
from app.worker.loading import groups, load
from sinks import SINKS

VARIABLES = config.variables(*groups(SWEEPERS, SINKS))
#: What parsers of the standard library have stumbled over.
ODD = [
    "a@[1.2.3.4canary",
    "canary@",
    "a@b@canary, \x00"[:-1],
    "https://[canary/",
    "https://[::1%canary]:1/",
    "https://canary.example.org:\u0663/",
    "whsec_canaryé",
    "[" * 100_000 + "canary",
    '{"canary": ' * 20_000,
    "9" * 6000,
    "canary\udcff",
    "::canary",
    "\uff11\uff10.0.0.0/8",
    "-" * 300 + "canary",
]


@pytest.mark.parametrize("odd", range(len(ODD)))
def test_any_text_in_any_variable_is_read_or_told(monkeypatch: pytest.MonkeyPatch, odd: int) -> None:
    for variable_ in VARIABLES:
        with monkeypatch.context() as patch:
            patch.setenv("DATABASE_URL", "postgres://127.0.0.1/x")
            patch.setenv("REDIS_URL", "redis://127.0.0.1")
            patch.setenv(variable_.names[0], ODD[odd])
            problems: list[str] = []
            try:
                load(SWEEPERS, SINKS)
            except ConfigError as error:
                problems = error.problems
            assert not [line for line in problems if "canary" in line or "Error" in line]


def _foreign(_value: str) -> str:
    raise KeyError("canary")


def _foreign_value_error(value: str) -> str:
    return value.encode("ascii").decode("idna")


class Odd(Settings):
    """Settings whose validators let the exceptions of others out."""

    one: Annotated[str, AfterValidator(_foreign)] = variable("SB_WORKER_ODD_ONE", default="x", meaning="one")
    two: Annotated[str, AfterValidator(_foreign_value_error)] = variable(
        "SB_WORKER_ODD_TWO", default="x", meaning="two"
    )


class Together(Settings):
    """Settings whose check across fields lets one out."""

    one: str = variable("SB_WORKER_ODD_ONE", default="x", meaning="one")
    two: str = variable("SB_WORKER_ODD_TWO", default="x", meaning="two")

    @model_validator(mode="after")
    def _check(self) -> Together:
        raise IndexError(self.one)


def test_a_foreign_exception_becomes_a_line_without_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SB_WORKER_ODD_ONE", "canary")
    monkeypatch.setenv("SB_WORKER_ODD_TWO", "canaryé")
    assert config.attempt(Odd)[1] == [
        f"{name}: {config._NOT_VALID}" for name in ("SB_WORKER_ODD_ONE", "SB_WORKER_ODD_TWO")
    ]
    assert config.attempt(Together)[1] == ["SB_WORKER_ODD_ONE, SB_WORKER_ODD_TWO: not valid together"]
