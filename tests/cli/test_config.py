"""`sb-worker config`, and the page of the documentation that it prints."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from app.core import config
from tests.support.processes import BIN, ROOT, environment

PAGE = ROOT / "docs" / "configuration.md"


def markdown(**env: str) -> str:
    clean = {**environment("", ""), **env}
    command = [str(BIN / "sb-worker"), "config", "--markdown"]
    return subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=60, check=True).stdout


def test_the_page_of_the_documentation_is_current() -> None:
    assert markdown() == PAGE.read_text(), "renew it: sb-worker config --markdown > docs/configuration.md"


def test_the_page_is_the_same_whatever_is_set() -> None:
    shown = markdown(
        SB_SWEEP_WRAPS_INTERVAL="never",
        SB_WORKER_LOCAL_ADDR="127.0.0.1:1",
        SB_NOTIFICATION_SLACK_URL="https://hooks.example/s3cret",
        TMPDIR="/nowhere",
    )
    assert shown == PAGE.read_text()


@pytest.mark.parametrize("cell", ["`SB_ENV`", "`REDIS_URL` | required", "`REDIS_POOL_SIZE` | unset"])
def test_a_variable_stands_there_with_its_default(cell: str) -> None:
    assert f"| {cell} | " in PAGE.read_text()


def test_variables_are_described_once_and_apart_from_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    class Group(config.Settings):
        url: Any = config.variable("X_URL", "Y_URL", meaning="where", secret=True)
        size: Any = config.variable("X_SIZE", meaning="how many", default="3", documented="as many as there are cores")

    monkeypatch.setenv("X_URL", "s3cret")
    assert config.variables(Group, Group) == [
        config.Variable(("X_URL", "Y_URL"), "required", "where", secret=True),
        config.Variable(("X_SIZE",), "as many as there are cores", "how many", secret=False),
    ]
    shown = [(row.name, row.value, row.source, row.default) for row in config.rows(Group, Group)]
    assert shown == [("X_URL", "set", "X_URL", "required"), ("X_SIZE", "3", "default", "3")]


def test_a_value_that_is_no_text_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of bytes that are not UTF-8 Python makes what no database takes."""

    class Group(config.Settings):
        name: str = config.variable("X_NAME", meaning="who")
        token: str = config.variable("X_TOKEN", meaning="what with", secret=True)

    file = tmp_path / "token"
    file.write_bytes(b"s3cret\x00")
    monkeypatch.setenv("X_NAME", os.fsdecode(b"s3cret\xff"))
    monkeypatch.setenv("X_TOKEN_FILE", str(file))
    _, problems = config.attempt(Group)
    assert problems == [
        "X_NAME: not a text; accepted: UTF-8, without NUL",
        "X_TOKEN_FILE: not a text; accepted: UTF-8, without NUL",
    ]
