"""REDIS_URL as go-redis reads it, translated for redis-py.

redis-py keeps any unknown parameter as a constructor argument and fails at its first use; here it fails at boot.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from app.core.values import parse_duration, parse_int
from app.storage.redis_connection import Pool, TcpConnection, TlsConnection, UnixConnection

#: Connections at most where neither a setting nor the URL bounds them: more than a process has threads.
DEFAULT_CONNECTIONS = 100
_ACCEPTED = "accepted: redis://user:password@host:port/db, rediss://... or unix:///path?db=0"
# go-redis knows these; redis-py has no counterpart.
_IGNORED = frozenset(
    [
        "pool_fifo",
        "pool_timeout",
        "min_idle_conns",
        "max_idle_conns",
        "max_active_conns",
        "conn_max_idle_time",
        "conn_max_lifetime",
        "idle_timeout",
        "max_conn_age",
        "idle_check_frequency",
        "min_retry_backoff",
        "max_retry_backoff",
        "max_retries",
        "write_timeout",
    ]
)
_KNOWN = ("db", "dial_timeout", "read_timeout", "pool_size", "protocol", "client_name")
# Broken escapes, and what would end a text early: after "#" the beginning of a password would pass for a port.
_UNFIT = re.compile(r"%(?![0-9A-Fa-f]{2})|[\x00-\x1f\x7f#]")

_ConnectionClass = type[TcpConnection | TlsConnection | UnixConnection]


@dataclass(frozen=True)
class RedisUrl:
    """Where Redis is."""

    connection_class: _ConnectionClass
    arguments: dict[str, Any] = field(repr=False)
    max_connections: int | None = None

    def __str__(self) -> str:
        return "set"

    def pool(self, *, max_connections: int | None = None, timeout: float = 1.0, **defaults: Any) -> Pool:
        """Return a pool, not connected yet, that waits at most `timeout` seconds for a free connection.

        The URL's parameters go before the defaults.
        """
        kind: Any = Pool
        pool: Pool = kind(
            max_connections=max_connections or self.max_connections or DEFAULT_CONNECTIONS,
            timeout=timeout,
            connection_class=self.connection_class,
            **(defaults | self.arguments),
        )
        return pool


def parse_redis_url(text: str) -> RedisUrl:
    """Read a URL. Raises ValueError that shows nothing of the text but the name of a parameter."""
    try:
        if _UNFIT.search(text):
            raise ValueError  # noqa: TRY301 - one message for all that is no URL
        url = urlsplit(text)
        query = dict(parse_qsl(url.query, keep_blank_values=True, strict_parsing=bool(url.query), errors="strict"))
        kind, arguments = _location(url.scheme, url.hostname, url.port, unquote(url.path, errors="strict"), query)
        user = {"username": url.username, "password": url.password}
        arguments |= {key: unquote(value, errors="strict") for key, value in user.items() if value}
    except ValueError:
        raise ValueError(f"not a Redis URL; {_ACCEPTED}") from None
    for key in query:
        if key not in _KNOWN and key not in _IGNORED:
            name = key if re.fullmatch(r"[a-z_]{1,30}", key) else "(not shown)"
            raise ValueError(f"parameter {name} is not known; accepted: {', '.join(sorted((*_KNOWN, *_IGNORED)))}")
    size = _number(query, "pool_size", minimum=1)
    return RedisUrl(kind, arguments | _parameters(query), size)


def _location(
    scheme: str, host: str | None, port: int | None, path: str, query: dict[str, str]
) -> tuple[_ConnectionClass, dict[str, Any]]:
    if scheme == "unix":
        if not path:
            raise ValueError
        return UnixConnection, {"path": path}
    if scheme not in ("redis", "rediss") or port == 0:
        raise ValueError
    number = path.strip("/")
    if number:
        query["db"] = query.get("db") or str(parse_int(number))
    arguments: dict[str, Any] = {"host": host or "localhost", "port": port or 6379}
    if scheme == "redis":
        return TcpConnection, arguments
    tls = {"ssl_cert_reqs": "required", "ssl_check_hostname": True, "ssl_min_version": ssl.TLSVersion.TLSv1_2}
    return TlsConnection, arguments | tls


def _parameters(query: dict[str, str]) -> dict[str, Any]:
    arguments: dict[str, Any] = {"db": _number(query, "db", minimum=0) or 0}
    if "dial_timeout" in query:
        arguments["socket_connect_timeout"] = _seconds(query, "dial_timeout")
    if "read_timeout" in query:
        arguments["socket_timeout"] = _seconds(query, "read_timeout")
    if "protocol" in query:
        if query["protocol"] not in ("2", "3"):
            raise ValueError("parameter protocol must be 2 or 3")
        arguments["protocol"] = int(query["protocol"])
    if query.get("client_name"):
        arguments["client_name"] = query["client_name"]
    return arguments


def _number(query: dict[str, str], key: str, *, minimum: int) -> int | None:
    if not query.get(key):
        return None
    try:
        number = parse_int(query[key])
    except ValueError:
        number = minimum - 1
    if number < minimum:
        raise ValueError(f"parameter {key} must be a number of at least {minimum}")
    return number


def _seconds(query: dict[str, str], key: str) -> float:
    """Return a duration in seconds; a number without a unit means seconds."""
    text = query[key]
    try:
        seconds = float(parse_int(text)) if re.fullmatch(r"[0-9]+", text) else parse_duration(text).total_seconds()
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise ValueError(f"parameter {key} must be a positive duration such as 5s, or a number of seconds")
    return seconds
