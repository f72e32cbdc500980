"""The value grammar, against what Go's own parsers accept and refuse."""

from __future__ import annotations

from datetime import timedelta

import pytest

from app.core import values

US = timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("0", timedelta(0)),
        ("0s", timedelta(0)),
        ("30s", timedelta(seconds=30)),
        ("1m30s", timedelta(seconds=90)),
        ("24h", timedelta(hours=24)),
        (".5s", timedelta(milliseconds=500)),
        ("1.s", timedelta(seconds=1)),
        ("1.5h", timedelta(minutes=90)),
        ("1h1h", timedelta(hours=2)),
        ("+5s", timedelta(seconds=5)),
        ("-5s", timedelta(seconds=-5)),
        ("-0", timedelta(0)),
        ("10us", 10 * US),
        ("10µs", 10 * US),
        ("10μs", 10 * US),
        ("1500ns", US),
        ("100ms", timedelta(milliseconds=100)),
        ("0.1s", timedelta(milliseconds=100)),
        ("2562047h", timedelta(hours=2562047)),
    ],
)
def test_reads_durations_that_go_reads(text: str, length: timedelta) -> None:
    assert values.parse_duration(text) == length


@pytest.mark.parametrize(
    "text",
    [
        "",
        "30",
        "1d",
        "1e3s",
        "5S",
        "1h 5m",
        " 5s",
        "5s ",
        "s",
        ".s",
        "-",
        "+",
        "5",
        "1_0s",
        "٣s",
        "--5s",
        "1.2.3s",
        "9e9h",
        "2562048h",
        "99999999999999999999h",
        "hunter2",
    ],
)
def test_refuses_durations_that_go_refuses_and_does_not_show_them(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration; accepted: a Go duration") as refused:
        values.parse_duration(text)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "text", ["0s", "1us", "500ms", "1s", "1.5s", "30s", "1m", "1m30s", "1h", "24h", "168h", "1h0.25s"]
)
def test_writes_durations_that_it_reads_back(text: str) -> None:
    length = values.parse_duration(text)
    assert values.format_duration(length) == text
    assert values.parse_duration(values.format_duration(-length)) == -length


@pytest.mark.parametrize("text", ["1", "t", "T", "true", "TRUE", "True"])
def test_reads_true(text: str) -> None:
    assert values.parse_bool(text)


@pytest.mark.parametrize("text", ["0", "f", "F", "false", "FALSE", "False"])
def test_reads_false(text: str) -> None:
    assert not values.parse_bool(text)


@pytest.mark.parametrize("text", ["yes", "on", "tRUE", " true", "", "2", "hunter2"])
def test_refuses_other_booleans(text: str) -> None:
    with pytest.raises(ValueError, match="not a boolean; accepted: true, false"):
        values.parse_bool(text)


@pytest.mark.parametrize(("text", "number"), [("10", 10), ("020", 20), ("+5", 5), ("-5", -5), ("0", 0)])
def test_reads_integers(text: str, number: int) -> None:
    assert values.parse_int(text) == number


@pytest.mark.parametrize("text", ["0x10", "1_0", " 5", "5.0", "", "٣", "1e3", "hunter2"])
def test_refuses_integers_that_python_would_take(text: str) -> None:
    with pytest.raises(ValueError, match="not an integer; accepted: decimal digits"):
        values.parse_int(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8091", ("127.0.0.1", 8091)),
        (":8091", ("", 8091)),
        ("[::1]:8091", ("::1", 8091)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_reads_addresses(text: str, address: tuple[str, int]) -> None:
    assert values.parse_host_port(text) == address


@pytest.mark.parametrize("text", ["8091", "a:b", "a:65536", "::1:8091", "a:-1", "", "a:", "a: 1"])
def test_refuses_other_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="not an address; accepted: host:port"):
        values.parse_host_port(text)


@pytest.mark.parametrize(
    ("text", "level"), [("INFO", "info"), ("Warning", "warn"), ("warn", "warn"), ("debug", "debug")]
)
def test_reads_log_levels_in_any_case(text: str, level: str) -> None:
    assert values.parse_log_level(text) == level
