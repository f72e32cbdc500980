"""What the options of a message mean here, read in one place.

Whoever can write to Redis can write any option, and Dramatiq takes several of them as orders: which actor to call
afterwards, which exceptions to expect. So only ours are known, and one of a wrong type or size is as if it were absent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

#: The largest whole number that Lua, JSON and PostgreSQL's clock all bear: in microseconds the year 2255.
_MOST_MICROSECONDS = 2**53
#: The largest value of each option that is a number; the least is 0.
_NUMBERS = {
    "slot": _MOST_MICROSECONDS,
    "sent": _MOST_MICROSECONDS,
    "clock": _MOST_MICROSECONDS,
    "lost": 1_000_000,
    "retries": 1_000,  # a wait is 2 to this power
    "eta": _MOST_MICROSECONDS // 1_000,
    "requeue_timestamp": _MOST_MICROSECONDS // 1_000,
}
_TEXTS = ("redis_message_id", "scheduled_at")
#: The name of a span in the first version of W3C's Trace Context: a trace, a span in it, and two flags.
_TRACEPARENT = re.compile("00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-0[0-3]")


class TickOptions(NamedTuple):
    """A tick's slot and when it was sent, in microseconds or None; how many were lost before it; earlier attempts.

    `ahead` is how far its scheduler's clock was ahead of Redis's, by which it was sent, in microseconds.
    """

    slot: int | None
    sent: int | None
    lost: int
    attempt: int
    ahead: int = 0


def known(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that mean something here and have a value that can be meant."""
    numbers = {name: number for name in _NUMBERS if (number := _number(options, name)) is not None}
    texts = {name: options[name] for name in _TEXTS if type(options.get(name)) is str}
    here = options.get("traceparent")
    trace = {"traceparent": here} if type(here) is str and _TRACEPARENT.fullmatch(here) else {}
    return {**numbers, **texts, **trace}


def tick_options(options: Mapping[str, Any]) -> TickOptions:
    """Read a tick's options; nothing in them makes this fail."""
    lost, attempt = _number(options, "lost"), _number(options, "retries")
    sent, clock = _number(options, "sent"), _number(options, "clock")
    ahead = clock - sent if clock is not None and sent is not None else 0
    return TickOptions(_number(options, "slot"), sent, lost or 0, attempt or 0, ahead)


def _number(options: Mapping[str, Any], name: str) -> int | None:
    value = options.get(name)
    return value if type(value) is int and 0 <= value <= _NUMBERS[name] else None
