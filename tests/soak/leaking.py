"""A worker that leaks a little with each run, to see that the soak finds it: what is leaked is in SOAK_LEAK."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import redis
from dramatiq.cli import main
from psycopg import Cursor

from app.sweeping.ledger import runs

_KEPT: list[object] = []
_PRUNE = runs.prune
_ROW = """
INSERT INTO secrets_bridge_worker.notification_hold (target, key, until)
VALUES ('leak', gen_random_uuid()::text, now() + interval '1 day')
"""


def _thread(_cursor: Cursor[Any]) -> None:
    threading.Thread(target=threading.Event().wait, daemon=True).start()


def _descriptor(_cursor: Cursor[Any]) -> None:
    _KEPT.append(os.open(os.devnull, os.O_RDONLY))


def _key(_cursor: Cursor[Any]) -> None:
    with redis.Redis.from_url(os.environ["REDIS_URL"]) as client:
        client.set(f"dramatiq:leak:{os.urandom(8).hex()}", 1)


def _row(cursor: Cursor[Any]) -> None:
    cursor.execute(_ROW)


def _memory(_cursor: Cursor[Any]) -> None:
    _KEPT.append(os.urandom(1024))


#: What may be leaked, a piece a run.
LEAKS: dict[str, Callable[[Cursor[Any]], None]] = {
    "thread": _thread,
    "descriptor": _descriptor,
    "key": _key,
    "row": _row,
    "memory": _memory,
}


def _prune(cursor: Cursor[dict[str, Any]], name: str, retention: timedelta) -> None:
    LEAKS[os.environ["SOAK_LEAK"]](cursor)
    _PRUNE(cursor, name, retention)


if __name__ in {"__main__", "__mp_main__"}:  # the second one in a child of the fork server
    runs.prune = _prune
if __name__ == "__main__":
    sys.argv[0] = "dramatiq"
    sys.exit(main())  # type: ignore[no-untyped-call]
