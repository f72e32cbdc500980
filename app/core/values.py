"""The grammar of values in environment variables: Go's, to the letter, since both workers read the same ones.

Every parser raises ValueError with what is accepted, and never with what was given: it may be a secret that ended
up under the wrong name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from enum import StrEnum
from fractions import Fraction
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BeforeValidator

T = TypeVar("T")

_remarks: ContextVar[list[str] | None] = ContextVar("remarks", default=None)


@contextmanager
def remarks() -> Iterator[list[str]]:
    """Yield a list of what is said in the body about values that are taken as others than they are."""
    said: list[str] = []
    token = _remarks.set(said)
    try:
        yield said
    finally:
        _remarks.reset(token)


def remark(text: str) -> None:
    """Say about the value that is being read what is taken in its place; it is a warning at boot."""
    if (said := _remarks.get()) is not None:
        said.append(text)


_US, _MS, _S = 10**3, 10**6, 10**9
_UNITS = {"ns": 1, "us": _US, "µs": _US, "μs": _US, "ms": _MS, "s": _S, "m": 60 * _S, "h": 3600 * _S}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_DURATION = re.compile(rf"([-+]?)((?:{_PART.pattern})+|0)")
_INT = re.compile(r"([-+]?)0*([0-9]{1,19})")
_ADDRESS = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*)):([0-9]{1,5})")
_LOGIN = re.compile(r"://[^/?#\s]*@")
_LEAST_INT64, _MOST_INT64 = -(2**63), 2**63 - 1
TRUE, _FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")
_MOST_PORT = 65_535

_NOT_A_DURATION = "not a duration; accepted: a Go duration such as 500ms, 30s, 1m30s or 24h"


def parse_duration(text: str) -> timedelta:
    """Read what Go's time.ParseDuration reads, in its range of 64-bit nanoseconds; cut off below a microsecond."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(_NOT_A_DURATION)
    sign, body = match[1], match[2]
    try:
        nanoseconds = sum(int(Fraction(number.rstrip(".")) * _UNITS[unit]) for number, unit in _PART.findall(body))
    except ValueError:  # thousands of digits, which Python does not read
        raise ValueError(_NOT_A_DURATION) from None
    if not _LEAST_INT64 <= (-nanoseconds if sign == "-" else nanoseconds) <= _MOST_INT64:
        raise ValueError(_NOT_A_DURATION + ", at most 292 years")
    length = timedelta(microseconds=nanoseconds // 1000)
    return -length if sign == "-" else length


def format_duration(length: timedelta) -> str:
    """Write a duration the short way: `1m30s`, `24h`, `1.5s`, `500ms`, `0s`. parse_duration reads it back."""
    if length < timedelta(0):
        return "-" + format_duration(-length)
    micros = length // timedelta(microseconds=1)
    if micros == 0:
        return "0s"
    if micros < 1_000_000:  # noqa: PLR2004 - a second
        return f"{micros / 1000:g}ms" if micros >= 1000 else f"{micros}us"  # noqa: PLR2004
    seconds, rest = divmod(micros, 1_000_000)
    hours, minutes, seconds = seconds // 3600, seconds // 60 % 60, seconds % 60
    fraction = f".{rest:06d}".rstrip("0") if rest else ""
    parts = [f"{hours}h" if hours else "", f"{minutes}m" if minutes else ""]
    parts.append(f"{seconds}{fraction}s" if seconds or fraction else "")
    return "".join(parts)


def parse_bool(text: str) -> bool:
    """Read what Go's strconv.ParseBool reads."""
    if text not in TRUE + _FALSE:
        raise ValueError("not a boolean; accepted: true, false, 1, 0, t, f")
    return text in TRUE


def parse_int(text: str) -> int:
    """Read a decimal integer of 64 bits, sign optional; `020` is 20, and `0x10`, `1_0` and spaces are refused."""
    match = _INT.fullmatch(text)
    if match is None or not _LEAST_INT64 <= (number := int(match[1] + match[2])) <= _MOST_INT64:
        raise ValueError("not an integer; accepted: decimal digits such as 10")
    return number


def parse_host_port(text: str) -> tuple[str, int]:
    """Read `host:port`, `:port` (all interfaces, an empty host) or `[ipv6]:port`."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[3]) > _MOST_PORT:
        raise ValueError("not an address; accepted: host:port such as 127.0.0.1:8091 or 0.0.0.0:8091")
    return match[1] or match[2] or "", int(match[3])


def has_login(text: str) -> bool:
    """Return whether there is a URL in a text that has a user or a password in it."""
    return _LOGIN.search(text) is not None


class LogLevel(StrEnum):
    """How much is logged; `warning` is read as `warn`."""

    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"


def parse_log_level(text: str) -> LogLevel:
    """Read a level in any case."""
    word = text.lower()
    try:
        return LogLevel("warn" if word == "warning" else word)
    except ValueError:
        raise ValueError("not a log level; accepted: debug, info, warn, warning, error") from None


def _from_text(parse: Callable[[str], T]) -> BeforeValidator:
    return BeforeValidator(lambda value: parse(value) if type(value) is str else value)


def _at_least(least: timedelta, text: str) -> AfterValidator:
    def check(value: timedelta) -> timedelta:
        if value < least:
            raise ValueError(text)
        return value

    return AfterValidator(check)


def leniently(parse: Callable[[str], T], otherwise: T, shown: str) -> BeforeValidator:
    """Take `otherwise`, with a remark that calls it `shown`, for a text that cannot be read, as the Go worker does.

    For settings with which nothing can go wrong but that they are not what was asked for.
    """

    def read(value: object) -> object:
        if type(value) is not str:
            return value
        try:
            return parse(value)
        except ValueError as error:
            remark(f"{error}; taken as {shown}, as the Go worker does")
            return otherwise

    return BeforeValidator(read)


def parse_positive_int(text: str) -> int:
    """Read an integer of at least 1."""
    return _positive(parse_int(text))


def parse_positive_duration(text: str) -> timedelta:
    """Read a duration of more than 0."""
    if (value := parse_duration(text)) < _TICK:
        raise ValueError("must be more than 0")
    return value


def _not_too_often(value: timedelta) -> timedelta:
    if value < _SHORTEST_CADENCE:
        remark("taken as 1s, which is the shortest")
    return max(value, _SHORTEST_CADENCE)


def _positive(value: int) -> int:
    if value < 1:
        raise ValueError("must be at least 1")
    return value


def _not_negative(value: int) -> int:
    if value < 0:
        raise ValueError("must not be negative")
    return value


_TICK = timedelta(microseconds=1)
_SHORTEST_CADENCE = timedelta(seconds=1)
Duration = Annotated[timedelta, _from_text(parse_duration), _at_least(timedelta(0), "must not be negative")]
PositiveDuration = Annotated[timedelta, _from_text(parse_duration), _at_least(_TICK, "must be more than 0")]
#: At least a second: a lifetime, or the longest time that something may take.
LongDuration = Annotated[timedelta, _from_text(parse_duration), _at_least(timedelta(seconds=1), "must be at least 1s")]
#: How often something happens: every second at most.
Cadence = Annotated[PositiveDuration, AfterValidator(_not_too_often)]
Bool = Annotated[bool, _from_text(parse_bool)]
PositiveInt = Annotated[int, _from_text(parse_int), AfterValidator(_positive)]
WholeNumber = Annotated[int, _from_text(parse_int), AfterValidator(_not_negative)]
HostPort = Annotated[tuple[str, int], _from_text(parse_host_port)]
Level = Annotated[LogLevel, leniently(parse_log_level, LogLevel.INFO, "info")]
