"""DATABASE_URL and REDIS_URL as the Go worker's drivers read them."""

from __future__ import annotations

import ssl
from typing import Any

import psycopg
import pytest
import redis
from psycopg.conninfo import conninfo_to_dict

from app.demo.servers import Redis
from app.storage.postgres_dsn import parse_database_url
from app.storage.redis_connection import TcpConnection, TlsConnection, UnixConnection
from app.storage.redis_dsn import parse_redis_url

NAME = {"application_name": "secrets-bridge-worker"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "postgres://u:p@h:5433/d",
            {"user": "u", "password": "p", "host": "h", "port": "5433", "dbname": "d"},
        ),
        ("postgresql://h/d?sslmode=require", {"host": "h", "dbname": "d", "sslmode": "require"}),
        ("pgx5://h/d", {"host": "h", "dbname": "d"}),
        ("postgres://u:p%40%2Fss@h/d%20b", {"user": "u", "password": "p@/ss", "host": "h", "dbname": "d b"}),
        ("postgres://a:1,b:2/d", {"host": "a,b", "port": "1,2", "dbname": "d"}),
        ("postgres://[::1]:5432/d", {"host": "::1", "port": "5432", "dbname": "d"}),
        ("host=h user=u password='a b' dbname=d", {"host": "h", "user": "u", "password": "a b", "dbname": "d"}),
        ("host = h dbname=d", {"host": "h", "dbname": "d"}),
        (
            "postgres://h/d?search_path=a,b&statement_timeout=5s",
            {"host": "h", "dbname": "d", "options": "-c search_path=a,b -c statement_timeout=5s"},
        ),
        (
            "postgres://h/d?options=-c%20x.y%3D1&work_mem=4%20MB",
            {"host": "h", "dbname": "d", "options": "-c x.y=1 -c work_mem=4\\ MB"},
        ),
        ("postgres://h/d?application_name=mine", {"host": "h", "dbname": "d", "application_name": "mine"}),
        ("postgres://h/d?pool_max_conns=4&pool_min_conns=1", {"host": "h", "dbname": "d"}),
    ],
)
def test_reads_database_urls_into_what_libpq_accepts(text: str, expected: dict[str, str]) -> None:
    assert conninfo_to_dict(parse_database_url(text).conninfo) == {**NAME, **expected}


@pytest.mark.parametrize(
    "text",
    [
        "hunter2",
        "mysql://u:hunter2@h/d",
        "postgres://u:hunter2@h:port/d",
        "postgres://u:hunter2@h:70000/d",
        "http://hunter2",
        "host='hunter2",
        "postgres://h/d?pool_max_conns=hunter2",
        "postgres://h/d?-c%20evil=hunter2",
        "postgres://h/d?hunter2",
    ],
)
def test_refuses_what_is_no_database_url_and_does_not_show_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"PostgreSQL URL; accepted|is not valid; accepted: a number") as refused:
        parse_database_url(text)
    assert "hunter2" not in str(refused.value)


def test_settings_in_the_url_reach_the_server(database: str) -> None:
    url = parse_database_url(f"{database}?work_mem=12MB&search_path=a,%20b")
    with psycopg.connect(url.conninfo) as connection:
        assert connection.execute("SHOW work_mem").fetchone() == ("12MB",)
        assert connection.execute("SHOW search_path").fetchone() == ("a, b",)


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("redis://h", TcpConnection, {"host": "h", "port": 6379, "db": 0}),
        ("redis://h:1/3", TcpConnection, {"host": "h", "port": 1, "db": 3}),
        ("redis://h?db=2", TcpConnection, {"host": "h", "port": 6379, "db": 2}),
        ("redis://u:p%40@h", TcpConnection, {"username": "u", "password": "p@"}),
        ("redis://:p@h", TcpConnection, {"password": "p"}),
        ("rediss://h", TlsConnection, {"ssl_cert_reqs": "required", "ssl_check_hostname": True}),
        ("rediss://h", TlsConnection, {"ssl_min_version": ssl.TLSVersion.TLSv1_2}),
        ("unix:///run/redis.sock?db=1", UnixConnection, {"path": "/run/redis.sock", "db": 1}),
    ],
)
def test_reads_redis_urls(text: str, kind: type, expected: dict[str, Any]) -> None:
    url = parse_redis_url(text)
    assert url.connection_class is kind
    assert expected.items() <= url.arguments.items()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("hunter2", "not a Redis URL"),
        ("http://:hunter2@h", "not a Redis URL"),
        ("redis://:hunter2@h:port", "not a Redis URL"),
        ("redis://:hunter2@h/one", "not a Redis URL"),
        ("redis://:hunter2@h?nonsense=1", "parameter nonsense is not known"),
        ("redis://h?Hunter2!hunter2=1", "parameter .not shown. is not known"),
    ],
)
def test_refuses_what_is_no_redis_url_and_does_not_show_it(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as refused:
        parse_redis_url(text)
    assert "hunter2" not in str(refused.value)


def test_urls_do_not_show_themselves() -> None:
    shown = repr(parse_database_url("postgres://u:hunter2@h/d")) + str(parse_database_url("postgres://u:hunter2@h/d"))
    shown += repr(parse_redis_url("redis://:hunter2@h")) + str(parse_redis_url("redis://:hunter2@h"))
    assert "hunter2" not in shown


def test_a_client_of_each_kind_of_server_answers(any_redis_server: Redis) -> None:
    with redis.Redis(connection_pool=parse_redis_url(any_redis_server.url() + "?read_timeout=2s").pool()) as client:
        assert client.ping()
