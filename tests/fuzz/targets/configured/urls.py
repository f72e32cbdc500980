"""URLs of PostgreSQL and Redis: read as libpq and the standard library read them, or refused without a part of them."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from app.storage.postgres_dsn import parse_database_url
from app.storage.redis_dsn import parse_redis_url
from tests.fuzz.target import target
from tests.fuzz.texts import CANARY, environment, near, texts

POSTGRES = (
    "postgres://user:canary7f3a@db.example.org:5432/control_plane?sslmode=require&connect_timeout=5",
    "postgresql://u@[::1]:5433,h2:5434/d?target_session_attrs=read-write&pool_max_conns=7",
    "host=db port=5432 user='a b' password=canary7f3a dbname=x application_name=y",
    "pgx5://u:p%40@h/d?search_path=x&statement_timeout=5000&ssl=true",
    "postgres:///d?host=/var/run/postgresql&port=5432&user=u",
    "postgres://h/d?service=x&servicefile=/nonexistent",
)
REDIS = (
    "redis://user:canary7f3a@redis.example.org:6379/2?dial_timeout=5s&read_timeout=3&pool_size=7",
    "rediss://:canary7f3a@[::1]:6380/0?skip_verify=true&client_name=x&max_active_conns=5",
    "unix://u:p@/run/redis.sock?db=3",
    "redis://h?db=1&protocol=3&max_retries=-1&idle_timeout=1m&pool_fifo=1",
)


def _refused(error: ValueError) -> None:
    assert CANARY not in str(error)
    assert str(error).strip()
    assert "Traceback" not in str(error)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


@target("postgres-url", texts | near(*POSTGRES), raw=_text, seeds=tuple(url.encode() for url in POSTGRES), cases=300)
def postgres_url(text: str) -> None:
    with environment({}):
        try:
            url = parse_database_url(text)
        except ValueError as error:
            _refused(error)
            return
        assert conninfo_to_dict(make_conninfo(**url.parameters))  # libpq takes it
        assert CANARY not in f"{url!r} {url}" or CANARY not in text.partition("?")[0]
    try:
        theirs = conninfo_to_dict(text)
    except (psycopg.Error, UnicodeError):
        return
    if theirs.get("service") or "" in str(theirs.get("host") or "x").split(","):
        return  # pgx's meaning of these, which is not libpq's
    for name in ("host", "port", "user", "password", "dbname"):
        if theirs.get(name):
            assert str(url.parameters.get(name)) == str(theirs[name]), name


@target("redis-url", texts | near(*REDIS), raw=_text, seeds=tuple(url.encode() for url in REDIS), cases=300)
def redis_url(text: str) -> None:
    try:
        url = parse_redis_url(text)
    except ValueError as error:
        _refused(error)
        return
    assert CANARY not in f"{url!r} {url}"
    arguments = url.arguments
    assert 0 <= arguments["db"] < 2**63
    if "host" in arguments:
        assert arguments["host"] == (urlsplit(text).hostname or "localhost")
        assert 0 < arguments["port"] < 65536
    if password := arguments.get("password"):
        assert password == unquote(urlsplit(text).password or "")
    pool = url.pool()
    pool.disconnect()
    assert pool.max_connections > 0
