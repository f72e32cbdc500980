"""A Ctrl-C while `sb-worker status --watch` looks is not lost, wherever it lands, and breaks nothing."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from app.cli import status
from app.cli.terminal import Terminal
from app.overview.model import Overview
from tests.overview.test_verdict import WELL


class Deployment:
    """What is watched: in the midst of a look Ctrl-C comes, at a place where every exception gets lost."""

    def __init__(self) -> None:
        self.looks = 0

    def read(self) -> Overview:
        self.looks += 1
        if self.looks > 1:
            pytest.fail("it goes on")
        with suppress(BaseException):
            os.kill(os.getpid(), signal.SIGINT)
            os.getpid()  # handlers run between two steps of Python
        return WELL


@pytest.fixture
def handler() -> Iterator[object]:
    before = signal.getsignal(signal.SIGINT)
    yield before
    signal.signal(signal.SIGINT, before)


def test_a_ctrl_c_that_lands_in_a_look_ends_it_with_the_last_screen(handler: object) -> None:
    output, deployment = io.StringIO(), Deployment()

    status._watch(Terminal(file=output, width=120, force_terminal=True), deployment, wide=False)  # type: ignore[arg-type]

    assert deployment.looks == 1
    assert "wraps-expired" in output.getvalue().rpartition("\x1b[?1049l")[2]
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_one_ends_a_look_that_takes_too_long(handler: object) -> None:
    class Slow(Deployment):
        def read(self) -> Overview:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("it goes on")

    status._watch(Terminal(file=io.StringIO(), force_terminal=True), Slow(), wide=False)  # type: ignore[arg-type]

    assert signal.getsignal(signal.SIGINT) is handler
