"""What Redis can do to us: forget everything, forget the locks, refuse, stand still, and be somebody's replica."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import redis

from app.demo.ports import reserved_port
from tests.chaos.faults.fault import ByTurns, counting
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.chaos.deployment import Deployment

LOCKS = "secrets-bridge:lock:worker:*"
_PROBE = "chaos:probe"
#: Seconds of an outage.
SHORT, LONG = 0.2, 3.0
#: Seconds in which somebody is back after another fault, and between two looks.
_SOON, _LOOK = 5.0, 0.01


@counting("redis wiped", "redis killed")
def killed(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """Killed, and after a while another one, empty: nothing is kept on disk.

    It counts when nothing answered meanwhile, and as a wipe when there was something to wipe.
    """
    with _outage(deployment, "killed"):
        with deployment.client() as client:
            had = _soon(over, lambda: _holds(client))
        deployment.redis.kill()
        try:
            over.wait(chance.uniform(SHORT, LONG))
            gone = not _answers(deployment)
        finally:
            deployment.start_server(deployment.redis)
    _count(deployment, "killed", gone)
    _count(deployment, "wiped", had)


@counting("redis wiped", "redis flushed")
def flushed(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """FLUSHALL: locks, marks, queues and messages are gone. It counts when there was something to wipe."""
    del chance
    with deployment.redis_lock, deployment.client() as client:
        had = _soon(over, lambda: _holds(client))
        with deployment.log.during("redis", outage=False, note="flushed"):
            client.flushall()
        _count(deployment, "flushed", had)
        _count(deployment, "wiped", had)


@counting("redis locks deleted")
def locks_deleted(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """Delete locks while somebody holds them: somebody else takes them at once."""
    del chance
    with deployment.redis_lock, deployment.client() as client:
        if not _soon(over, lambda: any(client.scan_iter(LOCKS, count=1000))):
            return
        with deployment.log.during("redis", outage=False, note="locks deleted"):
            held = list(client.scan_iter(LOCKS, count=1000))
            gone = client.delete(*held) if held else 0
        _count(deployment, "locks deleted", bool(gone))


@counting("redis full")
def full(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """No memory is left and nothing may be evicted: what would write is refused."""
    with _outage(deployment, "full"), deployment.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)
        try:
            _refuses_others(deployment, "full", client, "OutOfMemory", chance.uniform(SHORT, LONG), over)
        finally:
            client.config_set("maxmemory", 0)


@counting("redis replica")
def replica(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """It becomes a replica, as after a failover: connections stay and only reads are answered; then a master again."""
    with _outage(deployment, "replica"), deployment.client() as client, reserved_port() as nobody:
        client.replicaof("127.0.0.1", str(nobody))
        try:
            _refuses_others(deployment, "replica", client, "replica", chance.uniform(SHORT, LONG), over)
        finally:
            client.replicaof("NO", "ONE")


@counting("redis clients killed")
def clients_killed(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """All connections are closed by the server."""
    del chance
    with deployment.redis_lock, deployment.client() as client:
        _soon(over, lambda: len(client.client_list(_type="normal")) > 1)  # else nobody is there after an outage
        with deployment.log.during("redis", outage=False, note="clients killed"):
            gone = client.client_kill_filter(_type="normal", skipme=True)
        _count(deployment, "clients killed", bool(gone))


@counting("redis paused")
def paused(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """The server stands still, its connections stay. It counts when somebody waited for an answer in vain."""
    with _outage(deployment, "paused"):
        assert deployment.redis.process is not None
        deployment.redis.process.send_signal(signal.SIGSTOP)
        try:
            over.wait(chance.uniform(SHORT, 2 * LONG))
            _count(deployment, "paused", not _answers(deployment))
        finally:
            deployment.redis.process.send_signal(signal.SIGCONT)


@counting("redis scripts flushed")
def scripts_flushed(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """The scripts are forgotten by which locks are taken and given back."""
    del chance
    with deployment.redis_lock, deployment.client() as client:
        known = _soon(over, lambda: client.info("memory")["number_of_cached_scripts"] > 0)
        with deployment.log.during("redis", outage=False, note="scripts flushed"):
            client.script_flush()
        _count(deployment, "scripts flushed", known)


wiped = ByTurns(flushed, killed, flushed)
any_of_redis = ByTurns(locks_deleted, full, replica, clients_killed, paused, scripts_flushed)


@contextmanager
def _outage(deployment: Deployment, note: str) -> Iterator[None]:
    """Note an outage of the server: it ends when a write is answered once more."""
    with deployment.redis_lock, deployment.log.during("redis", outage=True, note=note):
        yield
        with deployment.client() as client:
            eventually(lambda: _writes(client))


def _count(deployment: Deployment, note: str, effect: bool) -> None:
    deployment.log.effect(f"redis {note}", int(effect))


def _soon(over: threading.Event, condition: Callable[[], bool]) -> bool:
    """Return whether it comes true soon: another fault may just have ended."""
    until = time.monotonic() + _SOON
    while not (found := condition()) and time.monotonic() < until:
        if over.wait(_LOOK):
            break
    return found


def _holds(client: redis.Redis) -> bool:
    """Return whether there is anything to wipe that is not our own."""
    return client.dbsize() > client.exists(_PROBE)


def _refuses_others(  # noqa: PLR0913, PLR0917 - a kind of refusal, and what a strike is given
    deployment: Deployment, note: str, client: redis.Redis, word: str, seconds: float, over: threading.Event
) -> None:
    """Wait for so long, and count that a write was refused, and after that one of somebody else's as well."""
    refuses = _refuses(client, word)
    before = _errors(client)
    over.wait(seconds)
    _count(deployment, note, refuses and (before is None or _soon(over, lambda: (_errors(client) or 0) > before)))


def _errors(client: redis.Redis) -> int | None:
    """Return how many answers were errors; None before Redis 6.2, which does not count them."""
    found = client.info("stats").get("total_error_replies")
    return None if found is None else int(found)


def _refuses(client: redis.Redis, word: str) -> bool:
    try:
        client.set(_PROBE, 1)
    except redis.RedisError as error:
        return word in str(error) or word in type(error).__name__
    return False


def _writes(client: redis.Redis) -> bool:
    try:
        return bool(client.set(_PROBE, 1, px=1000))
    except redis.RedisError:
        return False


def _answers(deployment: Deployment) -> bool:
    """Return whether it answers somebody who does not wait for long."""
    with redis.Redis(port=deployment.redis.port, socket_timeout=0.1) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
