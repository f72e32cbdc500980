"""`sb-worker` as an operator runs it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from app.demo.servers import Redis
from tests.support.processes import environment, finished

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(database: str, redis_server: Redis) -> Run:
    """Return a function that runs `sb-worker` with these words and variables."""

    def command(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return finished(["sb-worker", *words], environment(database, redis_server.url(), **env))

    return command
