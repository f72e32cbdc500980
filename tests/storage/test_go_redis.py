"""REDIS_URL: each row of docs/go-settings.md."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, NamedTuple

import pytest

from app.storage import redis_dsn
from app.storage.redis import connect
from app.storage.redis_dsn import parse_redis_url
from app.storage.settings import RedisSettings
from tests.storage.go_settings import rows

DEFAULT = {"db": 0, "client_name": None, "socket_timeout": None, "dial_timeout": None, "max_connections": None}
NUMBERS, DURATIONS = ("", "0", "-1", "+5"), ("", "0", "-1", "0s", "-5s", "5", "1m30s")


class Taken(NamedTuple):
    """A value that is taken, and what is not as it is by default."""

    value: str
    differs: dict[str, Any] = {}  # noqa: RUF012 - of a tuple, and not changed


def ignored(values: tuple[str, ...]) -> list[Taken]:
    return [Taken(value) for value in values]


TAKEN: dict[str, list[Taken]] = {
    "db": [Taken("2", {"db": 2}), Taken("+2", {"db": 2}), Taken("-1"), Taken("")],
    "protocol": ignored(("2", "3", "", "0", "-1", "4")),
    "client_name": [Taken("w", {"client_name": "w"}), Taken("")],
    "dial_timeout": [
        *ignored(("", "0", "-1", "0s")),
        Taken("3", {"dial_timeout": 3.0}),
        Taken("1m30s", {"dial_timeout": 90.0}),
    ],
    "read_timeout": [
        *ignored(("", "0", "-1", "-5s")),
        Taken("2", {"socket_timeout": 2.0}),
        Taken("500ms", {"socket_timeout": 0.5}),
    ],
    "pool_size": [Taken("4", {"max_connections": 4}), Taken("0"), Taken("")],
    "max_active_conns": [Taken("4", {"max_connections": 4}), Taken("0"), Taken("")],
    "skip_verify": ignored(("true", "1", "false", "0", "")),
    "pool_fifo": ignored(("true", "1", "false", "0", "")),
} | {
    key: ignored(NUMBERS if kind is redis_dsn._number else DURATIONS)
    for key, kind in redis_dsn._OPTIONS.items()
    if key in ("max_retries", "min_idle_conns", "max_idle_conns", "max_concurrent_dials", "idle_check_frequency")
    or key.endswith(("_backoff", "_time", "_lifetime", "_jitter", "_age"))
    or key in ("write_timeout", "pool_timeout", "idle_timeout")
}
WRONG: dict[Any, tuple[str, ...]] = {
    redis_dsn._number: ("hunter2", "1.5", "1s"),
    redis_dsn._size: ("-1", "hunter2"),
    redis_dsn._seconds: ("hunter2", "5 s", "1.5"),
    redis_dsn._truth: ("hunter2", "yes", "True"),
    redis_dsn._client_name: ("a%20b", "%C3%A9"),
}


def read(text: str) -> dict[str, Any]:
    url = parse_redis_url(text)
    found = {"db": 0, "client_name": None, "socket_timeout": None} | url.arguments
    return {
        "dial_timeout": url.dial_timeout,
        "max_connections": url.max_connections,
        **{key: found[key] for key in ("db", "client_name", "socket_timeout")},
    }


def test_each_option_has_its_row() -> None:
    assert {row[0] for row in rows("REDIS_URL")} == set(redis_dsn._OPTIONS) == set(TAKEN)


@pytest.mark.parametrize("scheme", ["redis://h", "rediss://h", "unix:///run/s"])
@pytest.mark.parametrize(("key", "case"), [(key, case) for key, found in TAKEN.items() for case in found])
def test_what_go_redis_takes_means_the_same(scheme: str, key: str, case: Taken) -> None:
    assert read(f"{scheme}?{key}={case.value.replace('+', '%2B')}") == DEFAULT | case.differs


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, kind in redis_dsn._OPTIONS.items() for value in WRONG[kind]]
)
def test_what_go_redis_refuses_is_named_and_not_shown(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^parameter {key} is not valid; accepted: ") as refused:
        parse_redis_url(f"redis://:hunter2@h?{key}={value}")
    assert "hunter2" not in str(refused.value)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="pool_size") as refused:
        parse_redis_url("redis://h?pool_size=-1&nonsense=1&dial_timeout=soon")
    assert len(str(refused.value).splitlines()) == 3


def test_the_smaller_bound_of_the_pool_counts() -> None:
    assert parse_redis_url("redis://h?pool_size=8&max_active_conns=5").max_connections == 5


def test_a_certificate_is_not_looked_at_when_that_is_asked_for() -> None:
    url = parse_redis_url("rediss://h?skip_verify=true")
    assert (url.arguments["ssl_cert_reqs"], url.arguments["ssl_check_hostname"]) == ("none", False)
    assert any("skip_verify" in warning for warning in RedisSettings(url=url).warnings)
    assert RedisSettings(url=parse_redis_url("rediss://h?skip_verify=false")).warnings == ()


def test_a_user_without_a_password_does_not_log_in() -> None:
    for text in ("redis://default@h", "redis://default:@h"):
        assert not {"username", "password"} & parse_redis_url(text).arguments.keys()


@pytest.mark.parametrize(
    ("url", "variable", "seconds"),
    [("redis://h", None, 5), ("redis://h?dial_timeout=2", None, 2), ("redis://h?dial_timeout=2", 3, 3)],
)
def test_the_variable_goes_before_the_url(url: str, variable: int | None, seconds: int) -> None:
    dial = None if variable is None else timedelta(seconds=variable)
    settings = RedisSettings(url=parse_redis_url(url), dial_timeout=dial)
    with connect(settings, answer_within=timedelta(seconds=60)) as client:
        connection: Any = client.connection_pool.make_connection()
    assert connection.socket_connect_timeout == seconds
    assert connection.protocol == 2
