"""Messages in Redis: what is none of ours is put aside, whatever it is, and what is one is read as it was made."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import redis as redis_py
from dramatiq import Message
from hypothesis import strategies as st

from app.core import metrics
from app.core.role import SINK_QUEUE
from app.worker import messages
from app.worker.messages import Malformed
from app.worker.tick_options import known, tick_options
from tests.fuzz.target import Holds, Servers, Target
from tests.fuzz.texts import spoiled, texts, values
from tests.worker.test_broker import Served

OPTIONS = {
    "redis_message_id": "a" * 16, "slot": 1, "sent": 2, "clock": 3, "lost": 0, "retries": 1, "eta": 1,
    "scheduled_at": "x", "requeue_timestamp": 1,
    "traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "pipe_target": {"x": 1}, "max_retries": 9,
}  # fmt: skip
SAMPLE = {
    "queue_name": SINK_QUEUE, "actor_name": "note", "args": [1], "kwargs": {}, "options": OPTIONS, "message_id": "m",
    "message_timestamp": 1,
}  # fmt: skip
BODIES = (spoiled(SAMPLE) | values).map(json.dumps).map(str.encode) | texts.map(
    lambda text: text.encode("utf-8", "surrogatepass")
)


@contextmanager
def _read(_servers: Servers) -> Iterator[Holds[bytes]]:
    actors: Any = Served("redis://127.0.0.1:1").broker.actors

    def holds(body: bytes) -> None:
        try:
            message = messages.read(body, SINK_QUEUE, actors)
        except Malformed as malformed:
            assert malformed.fault in messages.Fault
            return
        assert message.options == known(message.options)
        assert known(message.options).items() <= json.loads(body)["options"].items()
        told = tick_options(message.options)
        assert min(told.slot or 0, told.sent or 0, told.lost, told.attempt) >= 0
        again: Message[Any] = messages.read(message.encode(), SINK_QUEUE, actors)
        assert again == message

    yield holds


message_bodies = Target("message-bodies", BODIES, _read, bytes, (json.dumps(SAMPLE).encode(),), cases=200)


@contextmanager
def _consumed(servers: Servers) -> Iterator[Holds[list[bytes]]]:
    """A consumer of a real Redis steps around them, counts each once, and has the next good one."""
    url = servers.redis()
    with redis_py.Redis.from_url(url) as admin:
        served = Served(url)
        consumer: Any = served.broker.consume(SINK_QUEUE, prefetch=50, timeout=100)

        def holds(bodies: list[bytes]) -> None:
            before = _malformed()
            for body in bodies:
                number = _number(body)
                admin.hset(f"dramatiq:{SINK_QUEUE}.msgs", number, body)
                admin.rpush(f"dramatiq:{SINK_QUEUE}", number)
            served.send(7)
            good = None
            for _ in range(10 * len(bodies) + 20):
                message = next(consumer)
                if message is not None:
                    consumer.ack(message)
                    good = message
                if message is not None and message.message_id != "m" and message.args in ((7,), [7]):
                    break
            assert good is not None
            assert 0 <= _malformed() - before <= len(bodies)
            assert admin.hlen(f"dramatiq:{SINK_QUEUE}.msgs") == 0
            admin.flushall()

        try:
            yield holds
        finally:
            served.broker.client.close()


def _number(body: bytes) -> str:
    """Return under which number a message is stored: the one that it says, if it says one."""
    with suppress(Exception):
        number = json.loads(body)["options"]["redis_message_id"]
        if isinstance(number, str) and number.isascii():
            return f"{number}"
    return secrets.token_hex(8)


def _malformed() -> float:
    return sum(
        sample.value
        for family in metrics.MESSAGES_MALFORMED.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    )


message_queue = Target("message-queue", st.lists(BODIES | st.binary(max_size=30), max_size=6), _consumed, cases=15)
