"""What became of the sweepers' locks, as Redis itself tells it: MONITOR shows each command that a script calls.

Only for rounds in which nobody takes the server away: what happens while nobody listens is not known. Whatever makes
the past unknown begins a new segment.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Self

import redis

from tests.support.waiting import HUNG

_PREFIX = "secrets-bridge:lock:worker:sweeper:"
_DONE = {"SET": "taken", "PEXPIRE": "renewed", "DEL": "released"}
#: Commands that change a key; one that is sent by hand leaves nothing known of it.
_CHANGES = {*_DONE, "UNLINK", "GETDEL", "GETEX", "EXPIRE", "SETEX", "PSETEX", "SETNX", "PERSIST"}
_PAUSE = 0.05


class LockStep(NamedTuple):
    """Something that was done to a sweeper's lock. Nothing is known of what was before a segment."""

    #: By Redis's clock.
    at: datetime
    segment: int
    name: str
    #: "taken", "renewed" or "released" by a script, or "by hand".
    what: str
    #: Whose script it was: the first of its arguments.
    token: str = ""
    #: For how long it lives from here, when it is taken.
    lease: timedelta = timedelta(0)


class LockRecord:
    """Listens from a thread, on a connection of its own."""

    def __init__(self, url: str) -> None:
        self.steps: list[LockStep] = []
        self._url = url
        self._segment = 0
        self._caller = ""
        self._listens, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._listen, name="lock-record", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listens.wait(HUNG), "MONITOR is not answered"
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(HUNG)

    def _listen(self) -> None:
        while not self._over.is_set():
            self._segment += 1
            with suppress(redis.RedisError, OSError), redis.Redis.from_url(self._url, socket_timeout=HUNG) as client:
                self._follow(client)
            self._over.wait(_PAUSE)

    def _follow(self, client: Any) -> None:  # of which redis-py types nothing here
        with client.monitor() as monitor:
            self._listens.set()
            while not self._over.is_set():
                line = monitor.next_command() if monitor.connection.can_read(_PAUSE) else None
                if line is not None:
                    self.note(line)

    def note(self, line: Mapping[str, Any]) -> None:
        """Note one line of MONITOR. The commands of a script follow its EVALSHA, and nobody's come between."""
        command, *words = line["command"].split(" ")
        command = command.upper()
        what = "by hand"
        if line["client_type"] == "lua":
            what = _DONE.get(command, what) if self._caller else what
        elif command in {"EVAL", "EVALSHA"}:  # the text of EVAL has blanks of its own; ours are called by their digest
            self._caller = _first_argument(words) if command == "EVALSHA" else ""
        elif command in {"FLUSHALL", "FLUSHDB"}:
            self._segment += 1
        if command not in _CHANGES or not words or not words[0].startswith(_PREFIX):
            return
        token = "" if what == "by hand" else self._caller
        lease = timedelta(milliseconds=int(words[3])) if what == "taken" else timedelta(0)
        at = datetime.fromtimestamp(line["time"], UTC)
        self.steps.append(LockStep(at, self._segment, words[0].removeprefix(_PREFIX), what, token, lease))


def _first_argument(words: list[str]) -> str:
    """Return it, of a digest, a number of keys, the keys and the arguments."""
    if len(words) < 2 or not words[1].isdigit():
        return ""
    return next(iter(words[2 + int(words[1]) :]), "")
