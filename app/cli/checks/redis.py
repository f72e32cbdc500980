"""The part of `sb-worker check` that uses Redis as a worker does, on keys of its own that it deletes again."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import redis
from redis.exceptions import NoPermissionError

from app.cli.checks.finding import Finding
from app.core.errors import BootError
from app.core.role import SINK_QUEUE, SWEEP_QUEUE
from app.storage.redis import Client, WaitingClient, check_shards, connect
from app.storage.redis_reasons import explain, reason
from app.sweeping.lock import Locks, Tick
from app.sweeping.target_locks import RedisTargetLocks
from app.worker.broker import LEAST_WAIT_SECONDS, Broker

if TYPE_CHECKING:
    from app.storage.settings import RedisSettings

#: From so many messages on, a queue seems to have no worker.
LONG_QUEUE = 1_000
#: Every command that a worker, a scheduler or `sb-worker status` sends, its scripts included.
COMMANDS = (
    *("auth", "select", "client|setname", "cluster|info", "ping", "time", "evalsha", "script|load"),
    *("get", "set", "del", "exists", "pexpire", "pttl", "llen", "lpop", "rpush", "blmove"),
    *("hset", "hget", "hmget", "hdel", "hexists", "sadd", "srem", "smembers", "zadd", "zrem", "zrangebyscore"),
)


def acl_rules(namespace: str, queues: str) -> str:
    """Return the rules of an ACL that suffice; `queues` is the prefix of Dramatiq's keys."""
    keys = (f"*{namespace}:*worker:sweeper:*", f"{namespace}:lock:discover:*", queues, f"{queues}:*")
    return " ".join([*(f"~{key}" for key in keys), *(f"+{command}" for command in COMMANDS)])


def redis_findings(settings: RedisSettings, answer_within: timedelta) -> Iterator[Finding]:
    """Yield findings about Redis, each call to which is to end within `answer_within`."""
    with connect(settings, answer_within=answer_within) as client:
        try:
            client.ping()
            check_shards(client)
        except redis.RedisError as error:
            yield Finding("redis", False, f"REDIS_URL: Redis cannot be used: {explain(error)}")
            return
        except BootError as error:
            yield Finding("redis", False, str(error))
            return
        yield Finding("redis", True, "answers")
        waiting = WaitingClient(settings, answer_within, connections=1)
        broker = Broker(client=client, waiting=waiting, namespace=settings.queue_namespace, middleware=[])
        locks = _attempted("redis locks", lambda: _use_locks(client, settings), settings, broker)
        yield locks
        if locks.fine:
            yield from _expiry(client, settings, broker)
        queues = _attempted("redis queues", lambda: _use_queues(broker), settings, broker)
        yield queues
        if queues.fine:
            yield from _waits(broker, settings)
            yield from _lengths(client, broker)
        yield from _eviction(client)


def _attempted(subject: str, use: Callable[[], None], settings: RedisSettings, broker: Broker) -> Finding:
    try:
        use()
    except redis.RedisError as error:
        word = reason(error)
        if word == "NOPERM":
            rules = acl_rules(settings.namespace, broker.namespace)
            return Finding(subject, False, f"the user of REDIS_URL lacks rights; these suffice: {rules}")
        if word == "READONLY":
            return Finding(subject, False, "a replica, which takes no writes; REDIS_URL must lead to the master")
        return Finding(subject, False, f"takes no writes ({word})")
    return Finding(subject, True, "used as a worker does")


def _use_locks(client: Client, settings: RedisSettings) -> None:
    """Take a lock, renew it, and give it back with its slot marked; and one of a target. Raises redis.RedisError."""
    locks = Locks(client, namespace=settings.namespace, lease=timedelta(seconds=10))
    name = f"check-{secrets.token_hex(4)}"
    lock = f"{settings.namespace}:lock:worker:sweeper:{name}"
    keys, target = (lock, f"{{{lock}}}:tick"), f"{settings.namespace}:lock:discover:{name}"
    try:
        for done in (False, True):
            tick = locks.acquire(name, slot=1, sent=None, interval=timedelta(seconds=1))
            if isinstance(tick, Tick):
                locks.renew(tick.lease)
                locks.release(tick, done=done)
            if client.exists(keys[0]):  # a release never raises
                raise NoPermissionError("NOPERM a release")
        targets = RedisTargetLocks(client, settings.namespace)
        targets.take(name)
        targets.release([name])
        if client.exists(target):
            raise NoPermissionError("NOPERM a release")
    finally:
        _forget(client, *keys, target)


def _use_queues(broker: Broker) -> None:
    """Do all that is done with messages, on a queue of its own. Raises redis.RedisError."""
    queue = f"check-{secrets.token_hex(4)}"
    prefix, acks = f"{broker.namespace}:{queue}", f"{broker.namespace}:__acks__.{broker.broker_id}.{queue}"
    try:
        broker.client.time()
        broker.client.script_load("return 1")
        broker.client.llen(prefix)
        for number in ("1", "2", "3"):
            broker.do_enqueue(queue, number, "{}")
        broker.do_look(queue, 3)
        broker.fetched(queue, b"{}")
        broker.do_ack(queue, "1")
        broker.do_nack(queue, "2")
        broker.do_requeue(queue, "3")
        broker.drop(queue, "3")
        broker.client.zrem(f"{broker.namespace}:__heartbeats__", broker.broker_id)
    finally:
        _forget(broker.client, prefix, f"{prefix}.msgs", f"{prefix}.XQ", f"{prefix}.XQ.msgs", acks)


def _waits(broker: Broker, settings: RedisSettings) -> Iterator[Finding]:
    """Yield a warning when workers would have to ask for messages again and again."""
    queue = f"{broker.namespace}:check-{secrets.token_hex(4)}"
    try:
        broker.waiting.blmove(queue, queue, cast("int", LEAST_WAIT_SECONDS), "LEFT", "LEFT")
    except redis.RedisError as error:
        text = "BLMOVE is refused: workers ask for messages ten times a second, and sweeps start later"
        if reason(error) == "NOPERM":
            text += f"; these rights suffice: {acl_rules(settings.namespace, broker.namespace)}"
        yield Finding("redis waits", False, text, warning=True)


def _expiry(client: Client, settings: RedisSettings, broker: Broker) -> Iterator[Finding]:
    """Yield a warning when nobody can say when a lock runs out; no work depends on it."""
    try:
        client.pttl(f"{settings.namespace}:lock:worker:sweeper:check-{secrets.token_hex(4)}")
    except redis.RedisError as error:
        text = "PTTL is refused: `sb-worker status` cannot say when a lock runs out"
        if reason(error) == "NOPERM":
            text += f"; these rights suffice: {acl_rules(settings.namespace, broker.namespace)}"
        yield Finding("redis expiry", False, text, warning=True)


def _forget(client: redis.Redis, *keys: str) -> None:
    """Delete keys, or have them expire, as far as that is allowed."""
    for key in keys:
        try:
            client.delete(key)
        except redis.RedisError:
            with suppress(redis.RedisError):
                client.pexpire(key, timedelta(minutes=1))


def _lengths(client: Client, broker: Broker) -> Iterator[Finding]:
    for queue in (SWEEP_QUEUE, SINK_QUEUE):
        if (length := client.llen(f"{broker.namespace}:{queue}")) > LONG_QUEUE:
            text = f"{length} messages wait; run a worker that serves it (`dramatiq app.actors --queues {queue}`)"
            yield Finding(f"queue {queue}", False, text, warning=True)


def _eviction(client: Client) -> Iterator[Finding]:
    try:
        policy = client.config_get("maxmemory-policy").get("maxmemory-policy", "noeviction")
    except redis.RedisError:
        return  # hosted servers hide their configuration
    if policy != "noeviction":
        text = "maxmemory-policy may drop lock keys and queued ticks; set it to noeviction"
        yield Finding("redis eviction", False, text, warning=True)
