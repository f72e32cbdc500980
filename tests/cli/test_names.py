"""Names of sweepers and sinks as arguments: completed by a shell, and refused with those there are."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from actors import SWEEPERS
from app.cli.main import main
from app.cli.names import COMPONENT, SINK, SWEEPER
from sinks import SINKS
from tests.support.processes import BIN, ROOT
from tests.support.waiting import HUNG_PROCESS

NAMES = {"sweeper": [sweeper.name for sweeper in SWEEPERS], "sink": [sink.name for sink in SINKS]}


def completed(words: str) -> list[str]:
    """Return what a shell offers after these words, in an environment that has nothing else."""
    typed = words.split(" ")
    env = {"_SB_WORKER_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(typed) - 1), "PATH": ""}
    done = subprocess.run(
        [BIN / "sb-worker"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=HUNG_PROCESS, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_the_names_are_those_that_are_registered() -> None:
    assert list(SWEEPER.known) == sorted(NAMES["sweeper"])
    assert list(COMPONENT.known) == sorted([*NAMES["sweeper"], "notifications"])
    assert list(SINK.known) == sorted(NAMES["sink"])


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("sb-worker notify test ", sorted(NAMES["sink"])),
        ("sb-worker notify enable pa", ["pagerduty"]),
        ("sb-worker notify explain --sweeper gitops", ["gitops-poller", "gitops-timeout"]),
        ("sb-worker notify log --sweeper not", ["notifications"]),
        ("sb-worker dead list --sink t", ["teams"]),
    ],
)
def test_a_shell_completes_them_without_environment_or_server(words: str, offered: list[str]) -> None:
    assert completed(words) == offered


def test_completing_a_name_loads_neither_sweepers_nor_sinks() -> None:
    script = "import sys; from app.cli.names import SINK, SWEEPER; SINK.known + SWEEPER.known;"
    script += "print({name.partition('.')[0] for name in sys.modules} & {'actors', 'sinks', 'psycopg', 'pydantic'})"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("words", ["notify explain --sweeper", "dead list --sweeper", "notify log --sweeper"])
def test_a_sweeper_that_there_is_not_is_refused_with_those_there_are(words: str) -> None:
    result = CliRunner().invoke(main, [*words.split(), "wrap-expired"])
    assert result.exit_code == 2
    text = " ".join(result.output.replace("│", " ").split())
    assert "no sweeper is called 'wrap-expired' (is wraps-expired meant?); there are: " in text
    assert all(name in text for name in NAMES["sweeper"])


@pytest.mark.parametrize("words", ["notify test", "notify enable", "dead purge --all --sink", "notify log --sink"])
def test_a_sink_that_there_is_not_is_refused_with_those_there_are(words: str) -> None:
    result = CliRunner().invoke(main, [*words.split(), "telegram"])
    assert result.exit_code == 2
    assert "no sink is called 'telegram'" in result.output
    assert all(name in " ".join(result.output.split()) for name in NAMES["sink"])


def test_one_receiver_of_a_sink_may_be_named() -> None:
    assert SINK.convert("email:3f2a9c1b", None, None) == "email:3f2a9c1b"
