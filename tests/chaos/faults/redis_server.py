"""What Redis can do to us: forget everything, forget the locks, refuse, stand still, and be somebody's replica."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import redis

from tests.chaos.faults.fault import ByTurns
from tests.support.ports import reserved_port
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.chaos.deployment import Deployment

LOCKS = "secrets-bridge:lock:worker:*"
_PROBE = "chaos:probe"
#: Seconds of an outage.
SHORT, LONG = 0.2, 3.0


def killed(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """Killed, and after a while another one, empty: nothing is kept on disk."""
    with _outage(deployment, "killed"):
        deployment.redis.kill()
        try:
            over.wait(chance.uniform(SHORT, LONG))
        finally:
            deployment.start_server(deployment.redis)
    deployment.log.effect("redis wiped")


def flushed(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """FLUSHALL: locks, marks, queues and messages are gone."""
    del chance, over
    with deployment.redis_lock, deployment.client() as client:
        had = client.dbsize()
        with deployment.log.during("redis", outage=False, note="flushed"):
            client.flushall()
        _count(deployment, "flushed", bool(had))
        deployment.log.effect("redis wiped", bool(had))


def locks_deleted(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """Delete locks while somebody holds them: somebody else takes them at once."""
    del chance, over
    with deployment.redis_lock, deployment.client() as client:
        held = eventually(lambda: list(client.scan_iter(LOCKS, count=1000)), seconds=10)
        with deployment.log.during("redis", outage=False, note="locks deleted"):
            gone = client.delete(*held)
        _count(deployment, "locks deleted", bool(gone))


def full(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """No memory is left and nothing may be evicted: what would write is refused."""
    with _outage(deployment, "full"), deployment.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)
        try:
            _count(deployment, "full", _refuses(client, "OutOfMemory"))
            over.wait(chance.uniform(SHORT, LONG))
        finally:
            client.config_set("maxmemory", 0)


def replica(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """It becomes a replica, as after a failover: connections stay and only reads are answered; then a master again."""
    with _outage(deployment, "replica"), deployment.client() as client, reserved_port() as nobody:
        client.replicaof("127.0.0.1", str(nobody))
        try:
            _count(deployment, "replica", _refuses(client, "replica"))
            over.wait(chance.uniform(SHORT, LONG))
        finally:
            client.replicaof("NO", "ONE")


def clients_killed(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """All connections are closed by the server."""
    del chance, over
    with deployment.redis_lock, deployment.client() as client:
        with deployment.log.during("redis", outage=False, note="clients killed"):
            gone = client.client_kill_filter(_type="normal", skipme=True)
        _count(deployment, "clients killed", bool(gone))


def paused(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """The server stands still, its connections stay."""
    with _outage(deployment, "paused"):
        assert deployment.redis.process is not None
        deployment.redis.process.send_signal(signal.SIGSTOP)
        try:
            over.wait(chance.uniform(SHORT, 2 * LONG))
            with redis.Redis(port=deployment.redis.port, socket_timeout=0.1) as client:
                _count(deployment, "paused", not _answers(client))
        finally:
            deployment.redis.process.send_signal(signal.SIGCONT)


def scripts_flushed(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """The scripts are forgotten by which locks are taken and given back."""
    del chance, over
    with deployment.redis_lock, deployment.client() as client:
        known = client.info("memory")["number_of_cached_scripts"]
        with deployment.log.during("redis", outage=False, note="scripts flushed"):
            client.script_flush()
        _count(deployment, "scripts flushed", bool(known))


any_of_redis = ByTurns(killed, flushed, locks_deleted, full, replica, clients_killed, paused, scripts_flushed)


@contextmanager
def _outage(deployment: Deployment, note: str) -> Iterator[None]:
    """Note an outage of the server: it ends when a write is answered once more."""
    with deployment.redis_lock, deployment.log.during("redis", outage=True, note=note):
        yield
        with deployment.client() as client:
            eventually(lambda: _writes(client))
    if note == "killed":
        _count(deployment, note, effect=True)


def _count(deployment: Deployment, note: str, effect: bool) -> None:
    deployment.log.effect(f"redis {note}", int(effect))


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


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
