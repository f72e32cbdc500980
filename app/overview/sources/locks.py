"""What Redis says: whether it is of use, and who holds which sweeper's lock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import redis

from app.overview.model import ServerView
from app.storage.redis_connection import time_limit
from app.storage.redis_reasons import explain, reason

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Seconds that all that is asked of Redis may take.
_WITHIN = 1.5
#: A key that nobody else ever sees, below the prefix that the worker may write to; and for how long it is there, ms.
_PROBE, _PROBE_MS = "overview", 1000
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Lock(NamedTuple):
    """A lock that is held: by whom is known by its token alone, until when by Redis's clock."""

    token: bytes
    expires_in: timedelta | None


@dataclass(frozen=True)
class Locks:
    """The server, and the locks that are held, by sweeper."""

    server: ServerView
    held: Mapping[str, Lock] = field(default_factory=lambda: _NOTHING)


def read(client: redis.Redis, namespace: str, names: Sequence[str]) -> Locks:
    """Return what Redis says within a moment; never raises."""
    try:
        with time_limit(_WITHIN):
            client.ping()  # a connection that has died while idle is replaced by this
            return _answered(names, _ask(client, namespace, names))
    except redis.RedisError as error:
        return Locks(_of_no_use(error))


def _key(namespace: str, name: str) -> str:
    return f"{namespace}:lock:worker:sweeper:{name}"


def _ask(client: redis.Redis, namespace: str, names: Iterable[str]) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    pipeline.execute_command("HELLO")  # type: ignore[no-untyped-call]
    pipeline.set(_key(namespace, _PROBE), "0", px=_PROBE_MS)
    for name in names:
        pipeline.get(_key(namespace, name))
        pipeline.pttl(_key(namespace, name))
    return pipeline.execute(raise_on_error=False)


def _answered(names: Sequence[str], answers: Sequence[Any]) -> Locks:
    hello, written, *rest = answers
    if isinstance(written, redis.RedisError):
        return Locks(_of_no_use(written), _held(names, rest))
    known = {} if isinstance(hello, redis.RedisError) else _pairs(hello)
    return Locks(ServerView("redis", "", known.get("version", ""), known.get("role", "")), _held(names, rest))


def _held(names: Sequence[str], answers: Sequence[Any]) -> dict[str, Lock]:
    held = {}
    for name, token, left in zip(names, answers[::2], answers[1::2], strict=True):
        if isinstance(token, bytes):
            known = isinstance(left, int) and left >= 0
            held[name] = Lock(token, timedelta(milliseconds=left) if known else None)
    return held


def _pairs(hello: Any) -> dict[str, str]:
    pairs = hello if isinstance(hello, dict) else dict(zip(hello[::2], hello[1::2], strict=False))
    texts = {_text(name): _text(value) for name, value in pairs.items()}
    version = texts.get("version", "")
    return texts | {"version": version if version.replace(".", "").isdecimal() else ""}


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _of_no_use(error: redis.RedisError) -> ServerView:
    word = reason(error)
    return ServerView("redis", word if word.isupper() else "unreachable", "", explain(error))
