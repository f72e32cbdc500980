"""The edges of REDIS_URL; what comes out is taken by redis-py's own connections."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from redis.connection import SSLConnection

from app.storage.redis_dsn import parse_redis_url

CANARY = "hunter2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://", {"host": "localhost", "port": 6379, "db": 0}),
        ("redis://:p@:6380/2", {"host": "localhost", "port": 6380, "password": "p", "db": 2}),
        ("redis://[::1]:1", {"host": "::1", "port": 1}),
        ("redis://h/2?db=", {"db": 2}),
        ("redis://h/2?db=3", {"db": 3}),
        ("redis://a%3Ab:c%2Fd%23@h", {"username": "a:b", "password": "c/d#"}),
        ("unix://u:p@/run/a%20b.sock", {"path": "/run/a b.sock", "username": "u", "password": "p"}),
        ("redis://h?", {"host": "h"}),
        ("redis://h/0/", {"db": 0}),
        ("redis://h?db", {"db": 0}),
        ("redis://h?db=1&db=2", {"db": 2}),
    ],
)
def test_reads_the_edges_of_the_grammar(text: str, expected: dict[str, Any]) -> None:
    assert expected.items() <= parse_redis_url(text).arguments.items()


@pytest.mark.parametrize("url", ["redis://u:p@h:1/2", "rediss://u:p@h", "unix://u:p@/run/s"])
def test_redis_takes_every_argument(url: str) -> None:
    query = "?dial_timeout=1s&read_timeout=2&pool_size=3&protocol=3&client_name=w"
    pool: Any = parse_redis_url(url + query).pool()
    connection: Any = pool.make_connection()
    assert (connection.socket_timeout, connection.client_name) == (2, "w")
    assert pool.max_connections == 3


def test_tls_verifies_the_certificate_and_the_name() -> None:
    pool: Any = parse_redis_url("rediss://h").pool()
    connection = pool.make_connection()
    assert isinstance(connection, SSLConnection)
    assert connection.cert_reqs is ssl.CERT_REQUIRED
    assert connection.check_hostname
    assert connection.ssl_min_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unix://",
        f"redis://:12#{CANARY}@h",
        f"redis://:{CANARY}%zz@h",
        f"redis://:{CANARY}%ff@h",
        f"redis://:{CANARY}\n@h",
        f"redis://:{CANARY}@h:0",
        f"redis://:{CANARY}@h:99999",
        f"redis://:{CANARY}@h/1/2",
        f"redis://:{CANARY}@[h",
        f"redis://h?client_name={CANARY}%ff",
    ],
)
def test_refuses_broken_urls_and_does_not_show_them(text: str) -> None:
    with pytest.raises(ValueError, match="not a Redis URL; accepted: redis://") as refused:
        parse_redis_url(text)
    assert CANARY not in str(refused.value)


def test_an_unknown_parameter_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match="parameter ssl_cert_reqs is not known; accepted: client_name, ") as refused:
        parse_redis_url(f"rediss://:{CANARY}@h?ssl_cert_reqs={CANARY}")
    assert CANARY not in str(refused.value)


def test_a_pool_does_not_show_its_credentials() -> None:
    assert CANARY not in repr(parse_redis_url(f"redis://{CANARY}:{CANARY}@h").pool())
