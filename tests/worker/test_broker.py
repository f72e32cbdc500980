"""The broker and its consumers under a Dramatiq worker: outages of any kind, and messages of any kind."""

from __future__ import annotations

import json
import pickle
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis as redis_py
from dramatiq.common import current_millis, dq_name
from dramatiq.errors import Retry
from structlog.testing import capture_logs

from app.core.role import SINK_QUEUE, SWEEP_QUEUE
from app.demo.binaries import redis_programs
from app.demo.servers import Redis
from app.storage.redis import WaitingClient, connect
from app.storage.redis_dsn import parse_redis_url
from app.storage.settings import RedisSettings
from app.sweeping.schedule import Every
from app.worker import consumer
from app.worker.broker import Broker
from app.worker.tick_options import TickOptions, tick_options
from tests.storage.test_redis import server
from tests.support.rights.acl import GrantedRedis
from tests.support.waiting import HUNG, eventually

HOUR_MS = 3_600_000
OUTAGES = {
    "no memory": (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"], "OOM"),
    "too few replicas": (
        ["CONFIG", "SET", "min-replicas-to-write", "1"],
        ["CONFIG", "SET", "min-replicas-to-write", "0"],
        "NOREPLICAS",
    ),
    "demoted": (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"], "READONLY"),
    "rights": (
        ["ACL", "SETUSER", "default", "-evalsha"],
        ["ACL", "SETUSER", "default", "+evalsha"],
        "NOPERM",
    ),
}


class Served:
    """A worker in this process with one actor, `note`, on the queue `sinks`."""

    def __init__(self, url: str, **options: Any) -> None:
        settings, within = RedisSettings(url=parse_redis_url(url)), timedelta(seconds=HUNG)
        self.broker = Broker(
            client=connect(settings, answer_within=within),
            waiting=WaitingClient(settings, timedelta(seconds=3), connections=4),
            namespace="dramatiq",
            middleware=[dramatiq.middleware.Retries()],
            **options,
        )
        self.noted: list[int] = []
        dramatiq.actor(actor_name="note", queue_name=SINK_QUEUE, broker=self.broker)(self.noted.append)
        dramatiq.actor(actor_name="sweep", queue_name=SWEEP_QUEUE, broker=self.broker)(lambda: None)

    @contextmanager
    def running(self) -> Iterator[None]:
        worker = dramatiq.Worker(self.broker, worker_threads=2, worker_timeout=100)
        worker.start()
        try:
            yield
        finally:
            worker.stop()
            self.broker.client.close()

    def send(self, number: int, delay: int | None = None) -> None:
        self.broker.enqueue(self.broker.get_actor("note").message(number), delay=delay)


def fetched(redis: redis_py.Redis, prefix: str = "dramatiq") -> int:
    return sum(redis.scard(key) for key in redis.scan_iter(f"{prefix}:__acks__*"))


@pytest.mark.parametrize("kind", OUTAGES)
@pytest.mark.parametrize("program", sorted(redis_programs()))
def test_a_server_that_refuses_is_told_once_and_costs_no_delayed_message(
    kind: str, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, end, word = OUTAGES[kind]
    failed: list[str] = []
    with (
        server(tmp_path / "r", program=program) as running,
        redis_py.Redis(port=running.port) as admin,
    ):
        served = Served(running.url())
        note_failure = served.broker.outage.failed

        def fails(queue: str, error: redis_py.RedisError) -> None:
            note_failure(queue, error)
            failed.append(queue)

        monkeypatch.setattr(served.broker.outage, "failed", fails)
        with served.running(), capture_logs() as logs:
            served.send(1, delay=HOUR_MS)
            served.send(2)
            eventually(lambda: served.noted == [2] and fetched(admin) == 1)
            admin.execute_command(*begin)
            eventually(lambda: served.broker.outage.error is not None)
            with pytest.raises(redis_py.RedisError):
                served.broker.check()
            monkeypatch.setattr(consumer, "current_millis", lambda: current_millis() + HOUR_MS)
            failed.clear()
            eventually(lambda: dq_name(SINK_QUEUE) in failed)  # the message has come due in the outage
            assert served.noted == [2]
            admin.execute_command(*end)
            eventually(lambda: served.noted == [2, 1] and fetched(admin) == 0)
            eventually(lambda: served.broker.outage.error is None)
            served.broker.check()
        events = [(log["event"], log.get("error")) for log in logs if "Redis" in log["event"]]
        assert events == [("Redis refuses our commands; waiting", word), ("Redis is back", None)]


def test_an_end_that_redis_did_not_take_is_told_it_later(tmp_path: Path) -> None:
    done, go = threading.Event(), threading.Event()

    def hold(_number: int) -> None:
        done.set()
        go.wait(HUNG)

    with server(tmp_path / "r") as running, redis_py.Redis(port=running.port) as admin:
        served = Served(running.url())
        dramatiq.actor(actor_name="hold", queue_name=SINK_QUEUE, broker=served.broker)(hold)
        with served.running():
            served.broker.enqueue(served.broker.get_actor("hold").message(1))
            assert done.wait(HUNG)
            admin.execute_command("ACL", "SETUSER", "default", "-srem")
            go.set()
            eventually(lambda: served.broker.outage.error is not None)
            assert fetched(admin) == 1
            admin.execute_command("ACL", "SETUSER", "default", "+srem")
            eventually(lambda: fetched(admin) == 0)
            assert admin.hlen("dramatiq:sinks.msgs") == 0


def message(**changes: Any) -> dict[str, Any]:
    options = {"redis_message_id": secrets.token_hex(8), **changes.pop("options", {})}
    now = int(time.time() * 1000)
    plain = {"queue_name": SINK_QUEUE, "actor_name": "note", "args": [1], "kwargs": {}, "options": options}
    return {**plain, "message_id": secrets.token_hex(8), "message_timestamp": now, **changes}


def _without(name: str) -> dict[str, Any]:
    return {key: value for key, value in message().items() if key != name}


MALFORMED: dict[str, Any] = {
    "no json": b"{hunter2",
    "nothing": b"",
    "no utf-8": b"\xff\xfe",
    "a pickle": pickle.dumps({"a": "hunter2"}),
    "a list": b"[]",
    "a number": b"7",
    "deep": b"[" * 100_000,
    **{f"without {name}": _without(name) for name in message() if name not in ("message_id", "message_timestamp")},
    "one field more": {**message(), "extra": "hunter2"},
    "options null": {**message(), "options": None},
    "options a list": {**message(), "options": ["hunter2"]},
    "no id": {**message(), "options": {}},
    "id a number": {**message(), "options": {"redis_message_id": 7}},
    "kwargs null": {**message(), "kwargs": None},
    "kwargs": message(kwargs={"delivery": 1}),
    "args null": message(args=None),
    "args a number": message(args=7),
    "message id a list": message(message_id=["hunter2"]),
    "timestamp a text": message(message_timestamp="hunter2"),
    "timestamp NaN": message(message_timestamp=float("nan")),
    "another queue": message(queue_name=SWEEP_QUEUE),
    "a queue that is none": message(queue_name="hunter2"),
    "queue a list": message(queue_name=["hunter2"]),
    "an actor that is none": message(actor_name="hunter2"),
    "actor a list": message(actor_name=["hunter2"]),
    "no argument": message(args=[]),
    "one argument more": message(args=[1, 2]),
    **{f"argument {bad!r:.20}": message(args=[bad]) for bad in ("hunter2", None, 1.5, True, float("nan"), [1], 2**63)},
}


def push(redis: redis_py.Redis, queue: str, raw: Any) -> None:
    number = secrets.token_hex(8)
    if isinstance(raw, dict) and isinstance(raw.get("options"), dict) and "redis_message_id" in raw["options"]:
        number = str(raw["options"]["redis_message_id"])
    redis.hset(f"dramatiq:{queue}.msgs", number, raw if isinstance(raw, bytes) else json.dumps(raw))
    redis.rpush(f"dramatiq:{queue}", number)


@pytest.fixture
def served(redis: redis_py.Redis, redis_server: Redis) -> Iterator[Served]:
    served = Served(redis_server.url())
    with served.running():
        yield served


def test_a_malformed_message_is_a_dead_letter_and_stops_nothing(served: Served, redis: redis_py.Redis) -> None:
    with capture_logs() as logs:
        for raw in MALFORMED.values():
            push(redis, SINK_QUEUE, raw)
        redis.rpush("dramatiq:sinks", "an id without a body")
        served.send(7)
        eventually(lambda: served.noted == [7])
        eventually(lambda: fetched(redis) == 0)
    assert redis.zcard("dramatiq:sinks.XQ") == len(MALFORMED)
    assert redis.hlen("dramatiq:sinks.msgs") == 0
    told = [log["queue"] for log in logs if log["event"] == "message put aside, it is malformed"]
    assert told == [SINK_QUEUE] * len(MALFORMED)
    assert "hunter2" not in repr(logs)


@pytest.mark.parametrize("kind", ["an actor that is none", "no json", "options null"])
def test_a_malformed_delayed_message_is_one_too(kind: str, served: Served, redis: redis_py.Redis) -> None:
    raw = MALFORMED[kind]
    push(redis, "sinks.DQ", {**raw, "queue_name": "sinks.DQ"} if isinstance(raw, dict) else raw)
    served.send(7, delay=1)
    eventually(lambda: served.noted == [7] and fetched(redis) == 0)
    assert redis.zcard("dramatiq:sinks.XQ") == 1


def test_one_that_cannot_be_stored_is_dropped(tmp_path: Path) -> None:
    with server(tmp_path / "r", kind=GrantedRedis) as running, redis_py.Redis(port=running.port) as admin:
        rules = ["on", ">pw", "+@all", "~dramatiq", "~dramatiq:__*", "~dramatiq:sinks", "~dramatiq:sinks.msgs"]
        admin.execute_command("ACL", "SETUSER", "no-dead-letters", *rules, "~dramatiq:sinks.DQ*", "~dramatiq:sweeps*")
        # Maintenance would look at the dead letters.
        served = Served(f"redis://no-dead-letters:pw@127.0.0.1:{running.port}", maintenance_chance=0)
        with served.running():
            push(admin, SINK_QUEUE, b"{")
            served.send(7)
            eventually(lambda: served.noted == [7] and fetched(admin) == 0)
            assert admin.hlen("dramatiq:sinks.msgs") == 0


@pytest.mark.parametrize(
    "options",
    [
        {"eta": "x"},
        {"eta": float("nan")},
        {"eta": 10**15},
        {"eta": [1]},
        {"retries": "x"},
        {"retries": 10**9},
        {"throws": "x"},
        {"on_success": "hunter2"},
        {"pipe_target": 7},
        {"max_retries": "x"},
    ],
)
@pytest.mark.parametrize("queue", ["sinks", "sinks.DQ"])
def test_options_that_cannot_be_meant_do_no_harm(
    queue: str, options: dict[str, Any], served: Served, redis: redis_py.Redis
) -> None:
    def fail(_number: int) -> None:
        raise Retry(delay=1)

    dramatiq.actor(actor_name="fail", queue_name=SINK_QUEUE, broker=served.broker, max_retries=1)(fail)
    push(redis, queue, message(queue_name=queue, options=options))
    push(redis, queue, message(queue_name=queue, options=options, actor_name="fail"))
    eventually(lambda: served.noted == [1])
    eventually(lambda: fetched(redis) == 0 and redis.zcard("dramatiq:sinks.XQ") == 1)


@pytest.mark.parametrize("bad", ["abc", [1], {}, 1.5, float("nan"), -5, 10**30, None, True])
def test_a_ticks_option_of_a_wrong_type_or_size_is_as_if_absent(bad: Any) -> None:
    assert tick_options(dict.fromkeys(("slot", "sent", "lost", "retries"), bad)) == TickOptions(None, None, 0, 0)
    assert tick_options({"slot": 1, "sent": 2, "lost": 3, "retries": 4}) == TickOptions(1, 2, 3, 4)


def test_in_a_cluster_of_one_shard_messages_come_through(tmp_path: Path) -> None:
    with (
        server(tmp_path / "r", "--cluster-enabled", "yes") as running,
        redis_py.Redis(port=running.port) as admin,
    ):
        admin.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
        eventually(lambda: admin.cluster("INFO")["cluster_state"] == "ok")
        served = Served(running.url())
        with served.running():
            served.send(1)
            served.send(2, delay=1)
            eventually(lambda: sorted(served.noted) == [1, 2] and fetched(admin, "{dramatiq}") == 0)
        assert all(key.startswith(b"{dramatiq}:") for key in admin.scan_iter("*"))


def test_messages_of_a_dead_worker_are_found_by_a_user_without_keys(tmp_path: Path) -> None:
    with server(tmp_path / "r", kind=GrantedRedis) as running, redis_py.Redis(port=running.port) as admin:
        admin.execute_command("ACL", "SETUSER", "careful", "on", ">pw", "~dramatiq*", "+@all", "-@dangerous")
        dead = Served(running.url())
        dead.send(1)
        dead.broker.do_look(SINK_QUEUE, 1)
        dead.broker.client.close()
        url = f"redis://careful:pw@127.0.0.1:{running.port}"
        served = Served(url, heartbeat_timeout=1_000)
        with served.running():
            eventually(lambda: served.noted == [1] and fetched(admin) == 0)
            eventually(lambda: admin.zscore("dramatiq:__heartbeats__", dead.broker.broker_id) is None)
            assert served.broker.outage.error is None


def test_whoever_takes_a_message_is_known_to_a_redis_that_has_forgotten_everybody(
    redis: redis_py.Redis, redis_server: Redis
) -> None:
    served = Served(redis_server.url())
    served.broker.do_look(SINK_QUEUE, 1)
    redis.flushall()
    served.send(1)
    served.broker.do_fetch(SINK_QUEUE, 1)
    served.broker.client.close()

    assert fetched(redis) == 1  # which is searched for by its taker's name
    assert redis.zscore("dramatiq:__heartbeats__", served.broker.broker_id) is not None


def test_a_message_wakes_who_waits_and_idle_consumers_ask_seldom(served: Served, redis: redis_py.Redis) -> None:
    def waiting() -> int:
        return sum(client["cmd"] == "blmove" and "b" in client["flags"] for client in redis.client_list())

    eventually(lambda: waiting() == 4)  # two queues, and what is delayed of each
    redis.config_resetstat()
    for number in range(20):
        served.send(number)
        eventually(lambda: len(served.noted) == number + 1)  # noqa: B023 - called in this turn
    eventually(lambda: waiting() == 4 and fetched(redis) == 0)
    calls = {name: counted["calls"] for name, counted in redis.info("commandstats").items()}
    assert calls["cmdstat_lpop"] <= calls["cmdstat_zadd"]  # by each one something was taken, or it was a look


@pytest.mark.parametrize("program", sorted(redis_programs()))
@pytest.mark.parametrize("without", ["-blmove", "+@all"])
def test_where_waiting_is_refused_messages_are_asked_for(without: str, program: str, tmp_path: Path) -> None:
    with (
        server(tmp_path / "r", program=program, kind=GrantedRedis) as running,
        redis_py.Redis(port=running.port) as admin,
    ):
        admin.execute_command("ACL", "SETUSER", "plain", "on", ">pw", "~*", "+@all", without)
        served = Served(f"redis://plain:pw@127.0.0.1:{running.port}")
        with capture_logs() as logs, served.running():
            for number in range(10):
                served.send(number, delay=1 if number % 2 else None)
            eventually(lambda: sorted(served.noted) == list(range(10)) and fetched(admin) == 0)
            assert served.broker.outage.error is None
        told = [log["error"] for log in logs if "BLMOVE" in log["event"]]
        assert told == (["NOPERM"] if without == "-blmove" else [])


def test_a_worker_that_ends_waits_for_no_message_and_takes_none(redis: redis_py.Redis, redis_server: Redis) -> None:
    held, go = threading.Event(), threading.Event()

    def hold(_number: int) -> None:
        held.set()
        go.wait(HUNG)

    served = Served(redis_server.url())
    served.broker.waiting = WaitingClient(
        RedisSettings(url=parse_redis_url(redis_server.url())), timedelta(seconds=HUNG), connections=4
    )
    dramatiq.actor(actor_name="hold", queue_name=SINK_QUEUE, broker=served.broker)(hold)
    worker = dramatiq.Worker(served.broker, worker_threads=1, worker_timeout=100)
    worker.start()
    served.broker.enqueue(served.broker.get_actor("hold").message(1))
    assert held.wait(HUNG)

    def waiting() -> int:
        return sum("b" in client["flags"] for client in redis.client_list())

    eventually(lambda: waiting() == 4)  # none of them is still on its way there
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    eventually(lambda: waiting() == 0)  # all of 40 seconds each
    served.send(2)
    alive = redis.zscore("dramatiq:__heartbeats__", served.broker.broker_id)
    eventually(lambda: redis.zscore("dramatiq:__heartbeats__", served.broker.broker_id) != alive)
    assert redis.llen("dramatiq:sinks") == 1  # others may have it
    go.set()
    stopping.join(HUNG)
    assert not stopping.is_alive()
    assert served.noted == []
    served.broker.client.close()


def test_notifications_that_hang_leave_threads_to_sweeps(redis: redis_py.Redis, redis_server: Redis) -> None:
    go, swept, hanging = threading.Event(), threading.Event(), threading.Semaphore(0)

    def hang(_number: int) -> None:
        hanging.release()
        go.wait(HUNG)

    served = Served(redis_server.url(), serves_sweeps=True)
    dramatiq.actor(actor_name="hang", queue_name=SINK_QUEUE, broker=served.broker)(hang)
    dramatiq.actor(actor_name="tick", queue_name=SWEEP_QUEUE, broker=served.broker)(swept.set)
    with served.running():
        for number in range(10):
            served.broker.enqueue(served.broker.get_actor("hang").message(number))
        assert hanging.acquire(timeout=HUNG)
        served.broker.enqueue(served.broker.get_actor("tick").message())
        assert swept.wait(HUNG / 2)
        go.set()
        eventually(lambda: fetched(redis) == 0 and redis.llen("dramatiq:sinks") == 0)


def test_a_tick_that_was_lost_is_due_again_and_counts_once(tmp_path: Path) -> None:
    with server(tmp_path / "r", kind=GrantedRedis) as running, redis_py.Redis(port=running.port) as admin:
        served = Served(running.url())
        cadence = Every(timedelta(hours=1), clock=lambda: 1_000_000.0)
        actor = dramatiq.actor(actor_name="swept", queue_name=SINK_QUEUE, broker=served.broker)(lambda: None)
        actor.options["periodic"] = cadence

        def wake() -> None:
            """Do what periodiq does for an actor when it wakes."""
            served.broker._down_until = 0.0
            if cadence.validate(datetime.now(UTC)):
                actor.send_with_options(scheduled_at="now")

        running.stop()
        for _ in range(3):
            wake()
        running.start()
        for _ in range(3):
            wake()
        (sent,) = map(json.loads, admin.hvals("dramatiq:sinks.msgs"))
        assert sent["options"]["lost"] == 1
