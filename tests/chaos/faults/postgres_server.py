"""What PostgreSQL can do to us: crash, refuse writes, be full, be out of connections, stand still, throw us out."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psutil
import psycopg

from app.storage.postgres import only_row
from tests.chaos import preload
from tests.chaos.faults import points
from tests.chaos.faults.fault import ByTurns, counting
from tests.support.processes import process_status
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from psycopg import Connection

    from tests.chaos.deployment import Deployment

#: Seconds of an outage.
SHORT, LONG = 0.2, 3.0
#: Seconds between two looks whether somebody waits, and in which a sweeper comes.
_LOOK, _SOON = 0.05, 1.5
#: The most connections that a round's server takes, so that few are needed to use them up.
SETTINGS = {"max_connections": "80"}
_MANY = 100
_WRITE = "CREATE TABLE IF NOT EXISTS chaos.probe (filling text); INSERT INTO chaos.probe VALUES (repeat('x', 1000))"
_SESSIONS = "SELECT pid FROM pg_stat_activity WHERE usename <> 'postgres'"
_PROCESSES = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename <> 'postgres' AND application_name <> ''
"""
_LEFT = "SELECT count(*), count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid = ANY (%s)"
_WAITING = """
SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
 WHERE locktype = 'relation' AND relation = %s::regclass AND NOT granted AND usename <> 'postgres'
"""
#: What a client says first: whether there is TLS. One byte answers it.
_SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"


@counting("postgres crashed")
def crashed(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """An immediate shutdown, which is what a power cut looks like from outside, and after a while a recovery.

    It counts when the worker had sessions that ended of it, and no other was to be had.
    """
    with _outage(deployment, "crashed"):
        with deployment.sql() as sql:
            had = sql.execute(_SESSIONS).fetchall()
        deployment.postgres.crash()
        try:
            over.wait(chance.choice((0.0, chance.uniform(SHORT, LONG))))
            refused = _refused(deployment)
        finally:
            deployment.start_server(deployment.postgres)
    _count(deployment, "crashed", int(bool(had) and refused))


@counting("postgres read-only")
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


@counting("postgres disk full", needs_gcc=True)
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


@counting("postgres thrown out")
def thrown_out(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """All sessions of the worker's role are terminated. It counts when there were some, and they have ended."""
    del chance, over
    with deployment.postgres_lock, deployment.sql() as sql:
        with deployment.log.during("postgres", outage=False, note="thrown out"):
            sessions = [pid for (pid,) in sql.execute(_SESSIONS)]
            eventually(lambda: only_row(sql.execute(_LEFT, [sessions]))[0] == 0)
        _count(deployment, "thrown out", int(bool(sessions)))


@counting("postgres connections used up")
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


@counting("postgres table locked")
def table_locked(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """Somebody holds a swept table, as a migration of the api does. It counts when a sweep was seen waiting for it."""
    table = chance.choice(points.BATCH)
    # An outage of the one sweeper whose table it is.
    with deployment.log.during("postgres", outage=True, note=f"locked: {table}"), deployment.sql() as sql:
        with sql.transaction():
            sql.execute(f"SET LOCAL lock_timeout = '5s'; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
            waited, until = False, time.monotonic() + chance.uniform(SHORT, LONG)
            while not over.wait(_LOOK) and ((now := time.monotonic()) < until or (not waited and now < until + _SOON)):
                waited = waited or _waits(sql, table)
            waited = waited or _waits(sql, table)
        _count(deployment, "table locked", int(waited))


@counting("postgres checkpointer stopped")
def checkpointer_stopped(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """The checkpointer and the writers stand still. It counts when a checkpoint was asked for in vain."""
    with deployment.postgres_lock, deployment.sql() as sql:
        found = sql.execute(
            "SELECT pid FROM pg_stat_activity WHERE backend_type IN ('checkpointer', 'background writer', 'walwriter')"
        ).fetchall()
        with (
            deployment.log.during("postgres", outage=False, note="checkpointer stopped"),
            _stopped([psutil.Process(pid) for (pid,) in found]) as processes,
        ):
            over.wait(chance.uniform(SHORT, LONG))
            still = _stand_still(processes) and not _checkpoint(sql)
        _count(deployment, "checkpointer stopped", int(still))


@counting("postgres paused")
def paused(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """The whole server stands still, its connections stay: a frozen host. It counts when a client waited in vain."""
    with _outage(deployment, "paused"):
        assert deployment.postgres.process is not None
        postmaster = psutil.Process(deployment.postgres.process.pid)
        with _stopped([postmaster]), _stopped(postmaster.children(recursive=True)) as processes:
            over.wait(chance.uniform(SHORT, 2 * LONG))
            still = _stand_still(processes) and not _greets(deployment)
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


def _waits(sql: Connection[Any], table: str) -> bool:
    """Return whether somebody of the worker's waits for a lock of the table."""
    return bool(only_row(sql.execute(_WAITING, [table]))[0])


def _checkpoint(sql: Connection[Any]) -> bool:
    """Return whether a checkpoint is done soon."""
    sql.execute("SET statement_timeout = '300ms'")
    try:
        sql.execute("CHECKPOINT")
    except psycopg.errors.QueryCanceled:
        return False
    return True


def _greets(deployment: Deployment) -> bool:
    """Return whether somebody who comes is answered at once."""
    with socket.create_connection(("127.0.0.1", deployment.postgres.port), timeout=5) as client:
        client.sendall(_SSL_REQUEST)
        client.settimeout(0.1)
        try:
            return bool(client.recv(1))
        except TimeoutError:
            return False


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
    still = {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
    for _ in range(100):  # the signal is on its way for a moment
        if all(process_status(process.pid) in still for process in processes):
            return bool(processes)
        time.sleep(0.002)
    return False


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
