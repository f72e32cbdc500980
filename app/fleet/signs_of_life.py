"""The sign of life of a process: a row that it writes every few seconds, by the database's clock.

It says what nobody else can see from outside: that the process lives, which version it is, what it takes for the time,
how often it means to run what. Nothing depends on it. Where PostgreSQL is away it is missed, and comes back by itself.
"""

from __future__ import annotations

import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import structlog
from psycopg.types.json import Jsonb
from psycopg_pool import PoolTimeout

from app import __version__
from app.core import metrics
from app.core.errors import describe
from app.core.role import Kind

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg_pool import ConnectionPool

log = structlog.get_logger("fleet")

#: How often a process gives a sign of life, and after how long without one it counts as gone.
BEAT = timedelta(seconds=5)
GONE_AFTER = BEAT * 3
#: How long rows of processes are kept, in which it is known which of them were there.
KEPT = timedelta(days=7)
#: Beats between two looks for rows that are older.
_PRUNE_EVERY = 720

_BEAT: LiteralString = """
INSERT INTO secrets_bridge_worker.process AS known
       (id, kind, queues, deployment, host, pid, version, clock_ahead, cadences, off, draining, ticked_at)
VALUES (%(id)s, %(kind)s, %(queues)s, %(deployment)s, %(host)s, %(pid)s, %(version)s, %(local)s - clock_timestamp(),
        %(cadences)s, %(off)s, %(draining)s, clock_timestamp() - %(tick_age)s::interval)
    ON CONFLICT (id) DO UPDATE
   SET seen_at = clock_timestamp(), clock_ahead = excluded.clock_ahead, draining = excluded.draining,
       ticked_at = coalesce(excluded.ticked_at, known.ticked_at)
"""
_END: LiteralString = """
UPDATE secrets_bridge_worker.process SET ended_at = clock_timestamp() WHERE id = %(id)s
"""
_PRUNE: LiteralString = """
DELETE FROM secrets_bridge_worker.process
 WHERE seen_at < now() - %(kept)s OR seen_at > clock_timestamp() + %(gone_after)s
"""


@dataclass(frozen=True)
class Identity:
    """What a process says of itself: sweepers' names and variables' names, no value that might be secret."""

    kind: Kind
    #: What the operator calls the deployment.
    deployment: str
    #: How often it means to run which sweeper.
    cadences: Mapping[str, timedelta]
    #: The sweepers that are off, by the variable that switches them on.
    off: Mapping[str, str]
    #: The queues that it serves.
    queues: Collection[str] = ()
    id: str = field(default_factory=lambda: secrets.token_hex(16))

    def row(self) -> dict[str, object]:
        """Return the columns that stay as they are."""
        return {
            "id": self.id,
            "kind": self.kind.value,
            "queues": sorted(self.queues),
            "deployment": self.deployment,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "cadences": Jsonb({name: interval.total_seconds() for name, interval in self.cadences.items()}),
            "off": Jsonb(dict(self.off)),
        }


class SignsOfLife:
    """Gives the signs of life of this process."""

    def __init__(
        self,
        pool: ConnectionPool[Connection[Any]],
        identity: Identity,
        *,
        draining: Callable[[], bool] = lambda: False,
        ticked_at: Callable[[], float] = lambda: -math.inf,
    ) -> None:
        """`ticked_at` is when this process last sent a tick, monotonic seconds; -inf: never."""
        self._pool = pool
        self._identity = identity
        self._draining = draining
        self._ticked_at = ticked_at
        self._told = False
        self._beats = 0
        self._ended = threading.Event()

    def keep(self) -> None:
        """Give a sign of life every few seconds, until the end; the first one at once."""
        while not self._ended.is_set():
            self.beat()
            self._ended.wait(BEAT.total_seconds())

    def beat(self) -> None:
        """Give one sign of life, if PostgreSQL takes it."""
        age = time.monotonic() - self._ticked_at()
        words = {
            **self._identity.row(),
            "draining": self._draining(),
            "tick_age": None if age == math.inf else timedelta(seconds=age),
        }
        try:
            with self._pool.connection(timeout=1.0) as connection:
                # Only now: to be lent a connection may take a second, in which this clock would seem to be behind.
                connection.execute(_BEAT, {**words, "local": datetime.now(UTC)})
                if self._beats % _PRUNE_EVERY == 0:
                    connection.execute(_PRUNE, {"kept": KEPT, "gone_after": GONE_AFTER})
        except (psycopg.Error, PoolTimeout) as error:
            metrics.SIGNS_OF_LIFE.labels("failure").inc()
            self._tell(error)
        else:
            metrics.SIGNS_OF_LIFE.labels("success").inc()
            self._told = False
            self._beats += 1

    def end(self) -> None:
        """Say that the process ends. Never raises, and never waits for long.

        A scheduler does not: SIGTERM ends it at once, as a signal that nobody handles does.
        """
        if self._ended.is_set():
            return
        self._ended.set()
        with suppress(psycopg.Error, PoolTimeout), self._pool.connection(timeout=0.5) as connection:
            connection.execute(_END, {"id": self._identity.id})

    def _tell(self, error: Exception) -> None:
        """Log once an outage; that PostgreSQL is away is told by others."""
        level = log.warning if isinstance(error, psycopg.errors.InsufficientPrivilege) else log.debug
        if not self._told:
            level("sign of life not written", **describe(error)._asdict())
        self._told = True
