"""`sb-worker status --watch` on a real terminal: painted anew at any size, through outages, until Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from contextlib import suppress
from threading import Thread

import pytest
import redis as redis_py
from psycopg.conninfo import conninfo_to_dict

from tests.support.processes import BIN, ROOT, environment
from tests.support.proxy import Proxy
from tests.support.rights.acl import GrantedRedis
from tests.support.waiting import HUNG, HUNG_PROCESS, eventually


class Screen:
    """A terminal with the command on it."""

    def __init__(self, env: dict[str, str]) -> None:
        self._terminal, inner = pty.openpty()
        self._all = b""
        self._seen = 0
        self.resize(80, 24)
        self.popen = subprocess.Popen(
            [BIN / "sb-worker", "status", "--watch"],
            cwd=ROOT,
            env=env,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
        )
        os.close(inner)
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    @property
    def painted(self) -> bytes:
        """What was painted since it was last forgotten."""
        return self._all[self._seen :]

    def forget(self) -> None:
        """Count what is painted from now on."""
        self._seen = len(self._all)

    def shows(self, text: str) -> None:
        """Wait until something is painted, from now on."""
        self.forget()
        eventually(lambda: text.encode() in self.painted or self.popen.poll() is not None)
        assert self.popen.poll() is None, self.painted

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        self._reader.join(
            HUNG
        )  # it ends with the last of those that have the terminal; else it would read another file
        os.close(self._terminal)

    def _read(self) -> None:
        with suppress(OSError):
            while data := os.read(self._terminal, 65_536):
                self._all += data


@pytest.fixture
def proxies(database: str, redis: redis_py.Redis) -> Iterator[tuple[Proxy, Proxy]]:
    """Return what is between the command and its servers: PostgreSQL, Redis."""
    ports = (int(conninfo_to_dict(database)["port"] or 0), redis.connection_pool.connection_kwargs["port"])
    with Proxy(ports[0]) as to_postgres, Proxy(ports[1]) as to_redis:
        yield to_postgres, to_redis


@pytest.fixture
def screen(database: str, redis_server: GrantedRedis, proxies: tuple[Proxy, Proxy]) -> Iterator[Screen]:
    named = conninfo_to_dict(database)
    to_postgres, to_redis = proxies
    url = f"postgres://{named['user']}@127.0.0.1:{to_postgres.port}/{named['dbname']}"
    keys = redis_server.url().replace(f":{redis_server.port}/", f":{to_redis.port}/")
    env = environment(url, keys, TERM="xterm-256color")
    screen = Screen({name: value for name, value in env.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")})
    yield screen
    screen.close()


def test_it_survives_outages_of_both_servers_and_any_size_and_ends_with_the_last_screen(
    screen: Screen, proxies: tuple[Proxy, Proxy], database: str, redis: redis_py.Redis
) -> None:
    to_postgres, to_redis = proxies
    screen.shows("wraps-expired")

    to_redis.lead_to(1)
    to_redis.silence()
    screen.shows("redis unreachable")
    to_redis.lead_to(redis.connection_pool.connection_kwargs["port"])
    screen.shows("degraded: 2 problems")  # of the deployment, which has no processes

    to_postgres.lead_to(1)
    to_postgres.silence()
    screen.shows("cannot tell")
    to_postgres.lead_to(int(conninfo_to_dict(database)["port"] or 0))
    screen.shows("wraps-expired")

    for width, height in ((30, 8), (1, 1), (200, 60)):
        screen.resize(width, height)
        screen.popen.send_signal(signal.SIGWINCH)
    screen.shows("took")  # a column that only a wide terminal has

    screen.forget()
    screen.popen.send_signal(signal.SIGINT)
    assert screen.popen.wait(HUNG_PROCESS) == 0
    eventually(lambda: b"`periodiq app.actors`" in screen.painted.rpartition(b"\x1b[?1049l")[2])
    assert b"Traceback" not in screen.painted
