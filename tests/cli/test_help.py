"""Every command's help: whole, with an example, and there before anything is set."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from app.cli.help import SECTIONS
from app.cli.main import main
from tests.support.processes import BIN, ROOT
from tests.support.waiting import HUNG_PROCESS


def _commands(command: click.Command, *path: str) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _commands(inner, *path, name)


def _command(path: tuple[str, ...]) -> click.Command:
    command: click.Command = main
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    return command


EACH = pytest.mark.parametrize("path", list(_commands(main)), ids=lambda path: " ".join(("sb-worker", *path)))


def _help(path: tuple[str, ...], columns: int = 80) -> str:
    result = CliRunner().invoke(main, [*path, "--help"], env={"COLUMNS": str(columns)}, terminal_width=columns)
    assert result.exit_code == 0
    return result.output


@EACH
def test_help_is_whole(path: tuple[str, ...]) -> None:
    text = _help(path)
    assert r"\b" not in text
    assert "\b" not in text
    assert not [line for line in text.splitlines() if line.endswith("...") and "Usage:" not in line]
    assert not [line for line in text.splitlines() if len(line) > 80]


@EACH
def test_it_says_what_the_command_does_and_has_an_example(path: tuple[str, ...]) -> None:
    assert _command(path).help
    assert "  Examples:\n    sb-worker " in _help(path).replace("source <(sb-worker", "sb-worker")


@EACH
def test_each_command_has_one_line_in_the_list(path: tuple[str, ...]) -> None:
    command = _command(path)
    if isinstance(command, click.Group):
        lines = _help(path).splitlines()
        for name, inner in command.commands.items():
            (line,) = [line for line in lines if line.startswith(f"  {name} ")]
            assert line.endswith(inner.get_short_help_str(200))


def test_every_command_is_under_a_heading_and_in_its_order() -> None:
    text = _help(())
    assert "Others:" not in text
    places = [text.index(f"\n{heading}:") for heading, names in SECTIONS.items() if set(names) & set(main.commands)]
    assert places == sorted(places)


def test_the_first_help_says_what_the_statuses_mean() -> None:
    assert "Exit status: 0 fine, 1 failed or not known, 2 wrong usage; 3 (status, why):" in _help(())


def test_help_needs_nothing_of_the_environment() -> None:
    done = subprocess.run(
        [sys.executable, BIN / "sb-worker", "--help"],
        cwd=ROOT,
        env={},
        capture_output=True,
        text=True,
        timeout=HUNG_PROCESS,
        check=True,
    )
    assert done.stdout.startswith("Usage: sb-worker [OPTIONS] COMMAND [ARGS]...")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shells_script_asks_this_program(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert f"_SB_WORKER_COMPLETE={shell}_complete" in result.output


def test_bash_takes_the_script_and_completes_with_it() -> None:
    """A TAB after `sb-worker notify enable pag`, without the terminal."""
    script = f"""
        export PATH={BIN}:/usr/bin:/bin
        source <(sb-worker completion bash)
        COMP_WORDS=(sb-worker notify enable pag) COMP_CWORD=3
        _sb_worker_completion sb-worker
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env={}, capture_output=True, text=True, timeout=HUNG_PROCESS, check=True
    )
    assert done.stdout == "pagerduty\n"
