"""REDIS_URL as go-redis reads it, translated for redis-py.

redis-py keeps any unknown parameter as a constructor argument and fails at its first use; here it fails at boot.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from app.core.values import parse_duration, parse_int
from app.storage.files.roots import system_roots
from app.storage.redis_connection import Pool, TcpConnection, TlsConnection, UnixConnection

#: Connections at most where neither a setting nor the URL bounds them: more than a process has threads.
DEFAULT_CONNECTIONS = 100
_ACCEPTED = "accepted: redis://user:password@host:port/db, rediss://... or unix:///path?db=0"
# Broken escapes, and what would end a text early: after "#" the beginning of a password would pass for a port.
_UNFIT = re.compile(r"%(?![0-9A-Fa-f]{2})|[\x00-\x1f\x7f#]")
# Of printable ASCII without blanks, or the server refuses it.
_CLIENT_NAME = re.compile(r"[!-~]*")

_ConnectionClass = type[TcpConnection | TlsConnection | UnixConnection]


@dataclass(frozen=True)
class RedisUrl:
    """Where Redis is."""

    connection_class: _ConnectionClass
    arguments: dict[str, Any] = field(repr=False)
    max_connections: int | None = None
    #: Seconds that dialling may take, where that is said.
    dial_timeout: float | None = None

    def __str__(self) -> str:
        return "set"

    @property
    def verified(self) -> bool:
        """Whether a server over TLS must show that it is the one."""
        return self.arguments.get("ssl_cert_reqs") != "none"

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
    """Read a URL. Raises ValueError, a line a problem, that shows nothing of the text but the names of parameters."""
    try:
        if _UNFIT.search(text):
            raise ValueError  # noqa: TRY301 - one message for all that is no URL
        url = urlsplit(text)
        query = dict(parse_qsl(url.query, keep_blank_values=True, errors="strict"))
        kind, arguments, path_db = _location(url.scheme, url.hostname, url.port, unquote(url.path, errors="strict"))
        if url.password:  # go-redis logs in with a password only
            user = {"username": url.username, "password": url.password}
            arguments |= {key: unquote(value, errors="strict") for key, value in user.items() if value}
    except ValueError:
        raise ValueError(f"not a Redis URL; {_ACCEPTED}") from None
    asked, problems = _read(query)
    if problems:
        raise ValueError("\n".join(problems))
    arguments["db"] = max(asked.get("db", path_db), 0)  # go-redis does not select a database below 0
    if asked.get("client_name"):
        arguments["client_name"] = asked["client_name"]
    if asked.get("read_timeout"):
        arguments["socket_timeout"] = asked["read_timeout"]
    if kind is TlsConnection:
        arguments |= _tls(verified=not asked.get("skip_verify"))
    most = [number for key in ("pool_size", "max_active_conns") if (number := asked.get(key, 0)) > 0]
    return RedisUrl(kind, arguments, min(most, default=None), asked.get("dial_timeout") or None)


def _location(
    scheme: str, host: str | None, port: int | None, path: str
) -> tuple[_ConnectionClass, dict[str, Any], int]:
    if scheme == "unix":
        if not path.strip():
            raise ValueError
        return UnixConnection, {"path": path}, 0
    if scheme not in ("redis", "rediss") or port == 0:
        raise ValueError
    number = parse_int(path.strip("/") or "0")
    kind: _ConnectionClass = TcpConnection if scheme == "redis" else TlsConnection
    return kind, {"host": host or "localhost", "port": port or 6379}, number


def _tls(*, verified: bool) -> dict[str, Any]:
    trust = {"ssl_ca_certs": system_roots()} if verified and system_roots() else {}
    return trust | {
        "ssl_cert_reqs": "required" if verified else "none",
        "ssl_check_hostname": verified,
        "ssl_min_version": ssl.TLSVersion.TLSv1_2,
        # Python 3.13 changes both; in Go a chain may end in the middle, and RFC 5280 is not applied to the letter.
        "ssl_include_verify_flags": [ssl.VERIFY_X509_PARTIAL_CHAIN],
        "ssl_exclude_verify_flags": [ssl.VERIFY_X509_STRICT],
    }


def _number(text: str) -> int:
    """Read a number."""
    return parse_int(text)


def _size(text: str) -> int:
    """Read a number of at least 0; 0 stands for the default."""
    if (number := parse_int(text)) < 0:
        raise ValueError
    return number


def _seconds(text: str) -> float:
    """Read a duration, or whole seconds; 0 and less switch a limit off, and so become 0."""
    whole = re.fullmatch(r"[-+]?[0-9]+", text)
    return max(float(parse_int(text)) if whole else parse_duration(text).total_seconds(), 0.0)


def _truth(text: str) -> bool:
    """Read true, false, 1 or 0."""
    if text not in ("true", "1", "false", "0"):
        raise ValueError
    return text in ("true", "1")


def _client_name(text: str) -> str:
    """Read printable ASCII without blanks."""
    if not _CLIENT_NAME.fullmatch(text):
        raise ValueError
    return text


# go-redis's options. Most are about a pool that redis-py's is not like, about retries, which are the callers' here, or
# about waits, of which each call has one limit: these have to be right, and are not looked at any further.
_OPTIONS: dict[str, Callable[[str], Any]] = {
    "db": _number,
    "protocol": _number,
    "client_name": _client_name,
    "max_retries": _number,
    "min_retry_backoff": _seconds,
    "max_retry_backoff": _seconds,
    "dial_timeout": _seconds,
    "read_timeout": _seconds,
    "write_timeout": _seconds,
    "pool_fifo": _truth,
    "pool_size": _size,
    "pool_timeout": _seconds,
    "min_idle_conns": _number,
    "max_idle_conns": _number,
    "max_active_conns": _size,
    "max_concurrent_dials": _number,
    "conn_max_idle_time": _seconds,
    "conn_max_lifetime": _seconds,
    "conn_max_lifetime_jitter": _seconds,
    "skip_verify": _truth,
    # Of older releases.
    "idle_timeout": _seconds,
    "max_conn_age": _seconds,
    "idle_check_frequency": _seconds,
}
_ACCEPTED_AS: dict[Callable[[str], Any], str] = {
    _number: "a number",
    _size: "a number of at least 0",
    _seconds: "a duration such as 5s, or a number of seconds",
    _truth: "true or false",
    _client_name: "printable ASCII without blanks",
}


def _read(query: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return the parameters that have a value, and what is wrong with others; an empty one stands for its default."""
    asked: dict[str, Any] = {}
    problems: list[str] = []
    for key, text in query.items():
        if (read := _OPTIONS.get(key)) is None:
            name = key if re.fullmatch(r"[a-z_]{1,30}", key) else "(not shown)"
            problems.append(f"parameter {name} is not known; accepted: {', '.join(sorted(_OPTIONS))}")
            continue
        try:
            if text:
                asked[key] = read(text)
        except ValueError:
            problems.append(f"parameter {key} is not valid; accepted: {_ACCEPTED_AS[read]}")
    return asked, problems
