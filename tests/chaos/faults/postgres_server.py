"""What PostgreSQL can do to us: crash, refuse writes, be full, be out of connections, stand still, throw us out."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psutil
import psycopg

from tests.chaos import preload
from tests.chaos.faults import points
from tests.chaos.faults.fault import ByTurns
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from psycopg import Connection

    from tests.chaos.deployment import Deployment

#: Seconds of an outage.
SHORT, LONG = 0.2, 3.0
#: The most connections that a round's server takes, so that few are needed to use them up.
SETTINGS = {"max_connections": "80"}
_MANY = 100
_WRITE = "CREATE TABLE IF NOT EXISTS chaos.probe (filling text); INSERT INTO chaos.probe VALUES (repeat('x', 1000))"
_OURS = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename <> 'postgres'"
_PROCESSES = f"{_OURS} AND application_name <> ''"


def crashed(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """An immediate shutdown, which is what a power cut looks like from outside, and after a while a recovery."""
    with _outage(deployment, "crashed"):
        deployment.postgres.crash()
        try:
            over.wait(chance.choice((0.0, chance.uniform(SHORT, LONG))))
        finally:
            deployment.start_server(deployment.postgres)
    _count(deployment, "crashed", 1)


def read_only(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """No session writes any more, as on a standby; then all do again."""
    with _outage(deployment, "read-only"), deployment.sql() as sql:
        _set(sql, "ALTER SYSTEM SET default_transaction_read_only = on")
        try:
            eventually(lambda: _error(deployment) == psycopg.errors.ReadOnlySqlTransaction.__name__)
            _count(deployment, "read-only", 1)
            over.wait(chance.uniform(SHORT, LONG))
        finally:
            _set(sql, "ALTER SYSTEM RESET default_transaction_read_only")


def full(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """The disk is full: the server's system calls fail with ENOSPC wherever a file would grow."""
    if preload.GCC is None:
        return
    disk = preload.disk(deployment.directory, "postgres")
    with _outage(deployment, "disk full"):
        disk.turn(1)
        try:
            eventually(lambda: _error(deployment) == psycopg.errors.DiskFull.__name__)
            _count(deployment, "disk full", 1)
            over.wait(chance.uniform(SHORT, LONG))
        finally:
            disk.turn(0)


def thrown_out(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """All sessions of the worker's role are terminated."""
    del chance, over
    with deployment.postgres_lock, deployment.sql() as sql:
        with deployment.log.during("postgres", outage=False, note="thrown out"):
            row = sql.execute(_OURS).fetchone()
        _count(deployment, "thrown out", int(row is not None and row[0] > 0))


def used_up(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """No connection is to be had, and those that there were are gone."""
    with _outage(deployment, "connections used up"), deployment.sql() as sql, ExitStack() as stack:
        for _ in range(2):  # who comes back between the two finds nothing left
            sql.execute(_PROCESSES)
            with suppress(psycopg.OperationalError):
                for _ in range(_MANY):
                    stack.enter_context(psycopg.connect(deployment.ordinary_url, connect_timeout=5))
        refused = _refused(deployment)
        over.wait(chance.uniform(SHORT, LONG))
        _count(deployment, "connections used up", int(refused))


def table_locked(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """Somebody holds a swept table, as a migration of the api does."""
    table = chance.choice(points.BATCH)
    # An outage of the one sweeper whose table it is.
    with deployment.log.during("postgres", outage=True, note=f"locked: {table}"), deployment.sql() as sql:
        with sql.transaction():
            sql.execute(f"SET LOCAL lock_timeout = '5s'; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
            over.wait(chance.uniform(SHORT, LONG))
        _count(deployment, "table locked", 1)


def checkpointer_stopped(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """The checkpointer and the writers stand still."""
    with deployment.postgres_lock, deployment.sql() as sql:
        found = sql.execute(
            "SELECT pid FROM pg_stat_activity WHERE backend_type IN ('checkpointer', 'background writer', 'walwriter')"
        ).fetchall()
        with (
            deployment.log.during("postgres", outage=False, note="checkpointer stopped"),
            _stopped([psutil.Process(pid) for (pid,) in found]) as processes,
        ):
            over.wait(chance.uniform(SHORT, LONG))
            still = _stand_still(processes)
        _count(deployment, "checkpointer stopped", int(still))


def paused(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """The whole server stands still, its connections stay: a frozen host."""
    with _outage(deployment, "paused"):
        assert deployment.postgres.process is not None
        postmaster = psutil.Process(deployment.postgres.process.pid)
        with _stopped([postmaster]), _stopped(postmaster.children(recursive=True)) as processes:
            over.wait(chance.uniform(SHORT, 2 * LONG))
            still = _stand_still(processes)
        _count(deployment, "paused", int(still))


any_of_postgres = ByTurns(read_only, full, thrown_out, used_up, table_locked, checkpointer_stopped, paused)


@contextmanager
def _outage(deployment: Deployment, note: str) -> Iterator[None]:
    """Note an outage of the server: it ends when a write is committed once more."""
    with deployment.postgres_lock, deployment.log.during("postgres", outage=True, note=note):
        yield
        eventually(lambda: not _error(deployment))


def _error(deployment: Deployment) -> str:
    """Return the name of the error that a write of another session ends with; empty when it is done."""
    try:
        with psycopg.connect(deployment.postgres.url(), autocommit=True, connect_timeout=2) as connection:
            connection.execute(_WRITE)
    except psycopg.Error as error:
        return type(error).__name__
    return ""


def _refused(deployment: Deployment) -> bool:
    try:
        psycopg.connect(deployment.ordinary_url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return True
    return False


def _set(sql: Connection[Any], command: str) -> None:
    sql.execute(command.encode())
    sql.execute("SELECT pg_reload_conf()")


def _count(deployment: Deployment, note: str, times: int) -> None:
    deployment.log.effect(f"postgres {note}", times)


def _stand_still(processes: list[psutil.Process]) -> bool:
    """Return whether they have stopped, but for those that had ended already."""
    still = {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}
    return bool(processes) and all(process.status() in still for process in processes)


@contextmanager
def _stopped(processes: list[psutil.Process]) -> Iterator[list[psutil.Process]]:
    try:
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # a backend that has ended meanwhile
                process.suspend()
        yield [process for process in processes if process.is_running()]
    finally:
        for process in reversed(processes):
            with suppress(psutil.NoSuchProcess):
                process.resume()
