"""What comes out of Redis is a message for one of our actors, or malformed: nothing in it is taken on trust."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any

from dramatiq import Message
from dramatiq.errors import DecodeError

from app.worker.tick_options import known

if TYPE_CHECKING:
    from dramatiq import Actor

_BIGINT = range(-(2**63), 2**63)


class Fault(StrEnum):
    """Why a message cannot be processed: a closed set, so that it can be logged and be a label."""

    MISSING = "missing"  # its number was queued, its body is gone
    UNREADABLE = "unreadable"
    FIELD = "field"
    ACTOR = "actor"
    ARGUMENTS = "arguments"


class Malformed(Exception):
    """A message that no actor can be called with."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault


def read(body: bytes | None, queue: str, actors: Mapping[str, Actor[Any, Any]]) -> Message[Any]:
    """Read a message that was fetched from `queue`, its options reduced to those that are known. Raises Malformed."""
    if body is None:
        raise Malformed(Fault.MISSING)
    try:
        message: Message[Any] = Message.decode(body)
    except DecodeError:
        raise Malformed(Fault.UNREADABLE) from None
    if not _typed(message) or message.queue_name != queue:
        raise Malformed(Fault.FIELD)
    actor = actors.get(message.actor_name)
    if actor is None:
        raise Malformed(Fault.ACTOR)
    # Messages carry numbers, never texts: one that does was not made by us.
    numbers = all(type(argument) is int and argument in _BIGINT for argument in message.args)
    if message.kwargs or len(message.args) != _count(actor) or not numbers:
        raise Malformed(Fault.ARGUMENTS)
    message.options.update(options := known(message.options))
    for name in message.options.keys() - options:
        del message.options[name]
    return message


def _typed(message: Message[Any]) -> bool:
    return (
        isinstance(message.queue_name, str)
        and isinstance(message.actor_name, str)
        and isinstance(message.kwargs, dict)
        and isinstance(message.options, dict)
        and isinstance(message.message_id, str)
        and type(message.message_timestamp) is int
        and isinstance(message.options.get("redis_message_id"), str)
    )


@cache
def _count(actor: Actor[Any, Any]) -> int:
    """Return how many arguments an actor takes."""
    return len(inspect.signature(actor.fn).parameters)
