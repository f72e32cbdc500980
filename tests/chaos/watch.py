"""Sees from outside, by the machine's monotonic clock, when sweepers succeed: no fault moves that clock."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import NamedTuple, Self

import psycopg

LOOK_SECONDS = 0.1
_NEW = """
SELECT n, after ->> 'name' FROM chaos.change
 WHERE relation = 'sweep_run' AND after ->> 'outcome' = 'success' AND n > %s ORDER BY n
"""


class Success(NamedTuple):
    """A run that succeeded, and when it was seen."""

    at: float
    name: str


class Watch:
    """Looks ten times a second, from a thread, until its context ends."""

    def __init__(self, url: str) -> None:
        self.successes: list[Success] = []
        #: When it began, and until when sweepers were to succeed, monotonic seconds.
        self.began = self.ended = time.monotonic()
        self._url = url
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")

    def __enter__(self) -> Self:
        self.began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def rest(self) -> None:
        """Note that from now on sweepers may come to their end."""
        self.ended = time.monotonic()

    def _run(self) -> None:
        last = 0
        while not self._over.is_set():
            with suppress(psycopg.Error), psycopg.connect(self._url, autocommit=True, connect_timeout=2) as connection:
                while not self._over.wait(LOOK_SECONDS):
                    found = connection.execute(_NEW, [last]).fetchall()
                    now = time.monotonic()
                    self.successes += [Success(now, name) for _, name in found]
                    last = max((n for n, _ in found), default=last)
            self._over.wait(LOOK_SECONDS)
