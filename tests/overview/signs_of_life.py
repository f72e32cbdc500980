"""Processes that are not there: their signs of life, as a test wants them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import Connection
from psycopg.types.json import Jsonb

from app import __version__

QUEUES: Mapping[str, Sequence[str]] = {"scheduler": (), "worker": ("sweeps",), "notifier": ("sinks",)}


def sign_of_life(  # noqa: PLR0913 - a row's columns
    sql: Connection[Any],
    kind: str,
    *,
    queues: Sequence[str] | None = None,
    cadences: Mapping[str, float] | None = None,
    off: Mapping[str, str] | None = None,
    seen: float = 0,
    ticked: float | None = None,
    ahead: float = 0,
    host: str = "host",
    version: str = __version__,
) -> None:
    """Insert a process that was seen, and sent a tick, so many seconds ago, and whose clock is so many ahead."""
    sql.execute(
        """
        INSERT INTO secrets_bridge_worker.process
               (id, kind, queues, deployment, host, pid, version, started_at, seen_at, clock_ahead, cadences, off,
                ticked_at)
        VALUES (%(id)s, %(kind)s, %(queues)s, 'test', %(host)s, 1, %(version)s, now() - interval '1 h',
                now() - make_interval(secs => %(seen)s), make_interval(secs => %(ahead)s), %(cadences)s, %(off)s,
                now() - make_interval(secs => %(ticked)s))
        """,
        {
            "id": secrets.token_hex(16),
            "kind": kind,
            "queues": list(QUEUES[kind] if queues is None else queues),
            "host": host,
            "version": version,
            "seen": seen,
            "ahead": ahead,
            "cadences": Jsonb(cadences or {}),
            "off": Jsonb(off or {}),
            "ticked": ticked,
        },
    )
