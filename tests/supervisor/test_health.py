"""A container's own look at /healthz: each way of writing an address, and what is no answer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from app.demo.ports import reserved_port
from app.supervisor import health
from tests.support.http_server import Receiver, Reply
from tests.support.waiting import HUNG_PROCESS

ROOT = Path(health.__file__).parents[2]


def asked(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run it as the image's HEALTHCHECK does: without the installed packages."""
    words = [sys.executable, "-S", "-m", "app.supervisor.health", *arguments]
    outer: Mapping[str, str] = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **env}
    return subprocess.run(words, cwd=ROOT, env=outer, capture_output=True, text=True, timeout=HUNG_PROCESS, check=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "", "localhost"])
def test_a_process_that_answers_is_alive_however_its_address_is_written(host: str) -> None:
    with Receiver() as receiver:
        port = receiver.url.rpartition(":")[2]
        done = asked(SB_WORKER_LOCAL_ADDR=f"{host}:{port}")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert asked(f"{host}:{port}", SB_WORKER_LOCAL_ADDR="127.0.0.1:1").returncode == 0
    assert {request.path for request in receiver.seen} == {"/healthz"}


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert health.target("[::]:8091") == ("::1", 8091)
    assert health.target("[fd00::7]:8092") == ("fd00::7", 8092)


@pytest.mark.parametrize("reply", [Reply(503), Reply(404), Reply(500)])
def test_any_other_answer_is_none(reply: Reply) -> None:
    with Receiver(reply) as receiver:
        assert asked(receiver.url.partition("//")[2]).returncode == 1


@pytest.mark.parametrize("address", ["127.0.0.1:nonsense", "nonsense", "127.0.0.1:99999"])
def test_what_is_no_address_fails_with_one_line(address: str) -> None:
    done = asked(address)
    assert done.returncode == 1
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_nobody_there_fails_with_one_line_that_says_what_to_look_at() -> None:
    with reserved_port() as port:
        done = asked(SB_WORKER_LOCAL_ADDR=f"0.0.0.0:{port}")
    expected = f"/healthz on 0.0.0.0:{port} does not answer 200; is the process up, and listening there?\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, expected, "")
