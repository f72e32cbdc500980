"""Arguments of commands: any text is a value or wrong usage, with a line that says what is accepted."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import click
from click.testing import CliRunner
from hypothesis import strategies as st

from app.cli.main import main
from app.cli.names import COMPONENT, SINK, SWEEPER, SWEEPER_OR_ALL
from app.cli.values import Length, OneLine
from tests.fuzz.target import target
from tests.fuzz.texts import environment, near, texts

TYPES: tuple[click.ParamType[Any, Any], ...] = (
    *(Length(), Length(zero=True), Length(most=timedelta(days=1)), OneLine(200)),
    *(SWEEPER, SWEEPER_OR_ALL, COMPONENT, SINK),
)
WORDS = (
    *(
        "status",
        "why",
        "runs",
        "verify",
        "check",
        "config",
        "migrate",
        "run",
        "notify",
        "dead",
        "pause",
        "resume",
        "sweep",
        "unlock",
    ),
    *(
        "completion",
        "mute",
        "unmute",
        "log",
        "list",
        "replay",
        "purge",
        "test",
        "wraps-expired",
        "--help",
        "-o",
        "json",
        "--json",
    ),
    *(
        "--since",
        "1h",
        "--limit",
        "9" * 30,
        "-1",
        "--for",
        "--reason",
        "--all",
        "--id",
        "--sink",
        "slack",
        "--",
        "-",
        "--watch",
    ),
)


@target("arguments", texts | near("1h30m", "wraps-expired", "email:3f2a9c1b", "because of a migration"), cases=200)
def arguments(text: str) -> None:
    for kind in TYPES:
        try:
            value = kind.convert(text, None, None)
        except click.BadParameter as error:
            assert error.message.isprintable(), error.message
        else:
            assert value is not None


@target("command-lines", st.lists(st.sampled_from(WORDS) | texts, min_size=1, max_size=5), cases=60)
def command_lines(words: list[str]) -> None:
    """Without any server or setting: wrong usage, what is asked for, or what is missing."""
    if words[0] == "run":
        return  # it replaces the process
    with environment({}):
        result = CliRunner().invoke(main, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (0, 1, 2, 3)
    assert "a fault of this program" not in result.output
    assert "Traceback" not in result.output
