"""The edges of the value grammar, and the types that settings are declared with."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter, ValidationError

from app.core import values

CANARY = "hunter2"
SECOND = timedelta(seconds=1)
SIZE = Annotated[int, values.leniently(values.parse_positive_int, 7, "seven")]


@pytest.mark.parametrize("text", ["9223372036854775807ns", "-9223372036854775808ns", "2562047h47m16.854775807s"])
def test_reads_the_longest_durations_of_go(text: str) -> None:
    assert abs(values.parse_duration(text)) == timedelta(microseconds=9223372036854775)


@pytest.mark.parametrize("text", ["9223372036854775808ns", "-9223372036854775809ns", "9" * 5000 + "s"])
def test_refuses_durations_beyond_64_bits(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration; accepted: a Go duration"):
        values.parse_duration(text)


def test_each_part_of_a_duration_is_cut_to_nanoseconds_as_in_go() -> None:
    assert values.parse_duration("999.5ns0.5ns") == timedelta(0)
    assert values.parse_duration("-1999ns") == timedelta(microseconds=-1)


@pytest.mark.parametrize("micros", [0, 1, 999, 1000, 999_999, 1_000_001, 59_999_999, 3_600_000_001, 86_400_000_000])
@pytest.mark.parametrize("sign", [1, -1])
def test_any_duration_is_read_back_as_it_was(micros: int, sign: int) -> None:
    length = timedelta(microseconds=sign * micros)
    assert values.parse_duration(values.format_duration(length)) == length


@pytest.mark.parametrize(
    ("text", "number"),
    [("9223372036854775807", 2**63 - 1), ("-9223372036854775808", -(2**63)), ("0" * 5000 + "20", 20), ("-0", 0)],
)
def test_reads_integers_of_64_bits(text: str, number: int) -> None:
    assert values.parse_int(text) == number


@pytest.mark.parametrize("text", ["9223372036854775808", "-9223372036854775809", "9" * 5000, "5\n"])
def test_refuses_integers_beyond_64_bits(text: str) -> None:
    with pytest.raises(ValueError, match="not an integer; accepted: decimal digits"):
        values.parse_int(text)


@pytest.mark.parametrize("text", ["a]:80", "[a:80", "[::1]80", "[::1]x:80", "a:٨٠", "a:80\n", "a:000080"])
def test_refuses_addresses_with_stray_brackets_or_other_digits(text: str) -> None:
    with pytest.raises(ValueError, match="not an address; accepted: host:port"):
        values.parse_host_port(text)


def test_a_wrong_log_level_is_told_every_accepted_word() -> None:
    with pytest.raises(ValueError, match="accepted: debug, info, warn, warning, error"):
        values.parse_log_level("loud")


@pytest.mark.parametrize(
    "parse",
    [
        values.parse_duration,
        values.parse_bool,
        values.parse_int,
        values.parse_host_port,
        values.parse_log_level,
    ],
)
@pytest.mark.parametrize("text", [CANARY, f"1s{CANARY}", f"1{CANARY}", f"{CANARY}:99999", f"{CANARY}\n"])
def test_no_message_shows_what_was_given(parse: Callable[[str], Any], text: str) -> None:
    with pytest.raises(ValueError, match="accepted: ") as refused:
        parse(text)
    assert CANARY not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "given", "read"),
    [
        (values.Duration, "0", timedelta(0)),
        (values.Duration, SECOND, SECOND),
        (values.PositiveDuration, "1us", timedelta(microseconds=1)),
        (values.LongDuration, "1s", SECOND),
        (values.Cadence, "1m", 60 * SECOND),
        (values.Cadence, SECOND, SECOND),
        (values.Bool, "T", True),
        (values.Bool, False, False),
        (values.PositiveInt, "020", 20),
        (values.PositiveInt, 1, 1),
        (values.HostPort, ":8091", ("", 8091)),
        (values.HostPort, ("::1", 0), ("::1", 0)),
        (values.Level, "WARNING", values.LogLevel.WARN),
        (values.Level, values.LogLevel.INFO, values.LogLevel.INFO),
    ],
)
def test_types_take_texts_and_values_that_are_read_already(kind: Any, given: object, read: object) -> None:
    assert TypeAdapter(kind).validate_python(given) == read


@pytest.mark.parametrize(
    ("kind", "given", "problem"),
    [
        (values.Duration, "-1s", "must not be negative"),
        (values.Duration, -SECOND, "must not be negative"),
        (values.PositiveDuration, "0s", "must be more than 0"),
        (values.PositiveDuration, "999ns", "must be more than 0"),
        (values.LongDuration, "999ms", "must be at least 1s"),
        (values.Cadence, "0", "must be more than 0"),
        (values.Cadence, "-1s", "must be more than 0"),
        (values.Duration, "30", "not a duration; accepted: "),
        (values.Bool, "yes", "not a boolean; accepted: "),
        (values.PositiveInt, "0", "must be at least 1"),
        (values.PositiveInt, "1_0", "not an integer; accepted: "),
        (values.HostPort, "8091", "not an address; accepted: "),
    ],
)
def test_types_refuse_what_is_out_of_range(kind: Any, given: object, problem: str) -> None:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(kind).validate_python(given)
    (error,) = refused.value.errors()
    assert problem in error["msg"]


@pytest.mark.parametrize(
    ("kind", "given", "read", "said"),
    [
        (values.Cadence, "500ms", SECOND, "taken as 1s, which is the shortest"),
        (values.Level, CANARY, values.LogLevel.INFO, "not a log level; accepted: debug, info, warn, warning, error; "),
        (SIZE, "0", 7, "must be at least 1; taken as seven, as the Go worker does"),
        (SIZE, CANARY, 7, "not an integer; accepted: decimal digits such as 10; taken as seven"),
    ],
)
def test_what_is_taken_as_something_else_is_said_and_not_shown(kind: Any, given: str, read: object, said: str) -> None:
    with values.remarks() as texts:
        assert TypeAdapter(kind).validate_python(given) == read
    (text,) = texts
    assert text.startswith(said)
    assert CANARY not in text
    with values.remarks() as texts:
        assert TypeAdapter(values.Cadence).validate_python("1s") == SECOND
    assert texts == []
