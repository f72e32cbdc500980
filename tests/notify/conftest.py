"""A notifier without Dramatiq, and a receiver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from psycopg import Connection
from psycopg_pool import ConnectionPool

from tests.support.http_server import Receiver
from tests.support.notifier_harness import NotifierHarness, Open
from tests.support.outcome import LOOPBACK, configured


@pytest.fixture
def harness(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Give a function that opens a desk for the sinks that these variables configure."""
    with ExitStack() as stack:
        pool = stack.enter_context(
            ConnectionPool[Connection[Any]](database, kwargs={"autocommit": True}, min_size=0, max_size=4, open=True)
        )

        def opened(**env: str) -> NotifierHarness:
            return stack.enter_context(NotifierHarness(pool, configured(monkeypatch, {**LOOPBACK, **env})))

        yield opened


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as one:
        yield one
