"""The grammar of values: what is read is written and read again; what is refused is not quoted."""

from __future__ import annotations

import re
from datetime import timedelta

from app.core.values import (
    format_duration,
    has_login,
    parse_bool,
    parse_duration,
    parse_host_port,
    parse_int,
    parse_log_level,
    parse_positive_duration,
    parse_positive_int,
)
from tests.fuzz.target import target
from tests.fuzz.texts import CANARY, near, texts

SAMPLES = (
    "1h30m",
    "-1.5h",
    ".5s",
    "90µs",
    "0",
    "9223372036854775807ns",
    "true",
    "020",
    "[::1]:80",
    ":8091",
    "a:65535",
    "warning",
)


@target("values", texts | near(*SAMPLES), raw=lambda data: data.decode("utf-8", "surrogateescape"), cases=300)
def values(text: str) -> None:
    for parse in (
        parse_duration,
        parse_positive_duration,
        parse_bool,
        parse_int,
        parse_positive_int,
        parse_host_port,
        parse_log_level,
    ):
        try:
            parse(text)
        except ValueError as error:
            assert CANARY not in str(error)
            assert "\n" not in str(error)
    has_login(text)
    _duration(text)
    _integer(text)
    _address(text)


def _duration(text: str) -> None:
    try:
        length = parse_duration(text)
    except ValueError:
        return
    assert abs(length) <= timedelta(microseconds=2**63 // 1000)
    assert parse_duration(format_duration(length)) == length


def _integer(text: str) -> None:
    """Python's own reading, where that takes no more than Go's."""
    try:
        number = parse_int(text)
    except ValueError:
        assert not re.fullmatch(r"[+-]?[0-9]{1,18}", text)
    else:
        assert number == int(text)


def _address(text: str) -> None:
    try:
        host, port = parse_host_port(text)
    except ValueError:
        return
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    assert parse_host_port(shown) == (host, port)
