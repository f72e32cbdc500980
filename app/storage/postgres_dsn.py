"""DATABASE_URL as the Go worker's driver reads it, translated for libpq.

pgx takes any unknown parameter for a server setting and has some of its own; libpq refuses both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo

from app.core.values import parse_int

_ACCEPTED = "accepted: postgres://user:password@host:port/database or key=value pairs"
_SCHEMES = ("postgres", "postgresql", "pgx5")
_KNOWN = frozenset(option.keyword.decode() for option in Conninfo.get_defaults())
# pgx's and its pool's own parameters; of these only the pool's size and the ways not to prepare mean something here.
_PGX = frozenset(
    [
        "pool_max_conns",
        "pool_min_conns",
        "pool_min_idle_conns",
        "pool_max_conn_lifetime",
        "pool_max_conn_lifetime_jitter",
        "pool_max_conn_idle_time",
        "pool_health_check_period",
        "default_query_exec_mode",
        "statement_cache_capacity",
        "description_cache_capacity",
    ]
)
_UNPREPARED = ("exec", "simple_protocol", "cache_describe", "describe_exec")
_PAIR = re.compile(
    r"([A-Za-z_][\w.]*)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?!')(?:[^\s\\]|\\.)*))(?:\s+|\Z)", re.ASCII | re.DOTALL
)
_NAME = re.compile(r"[A-Za-z_][\w.]*", re.ASCII)
# Broken escapes, and what would end a text early: NUL for libpq, "#" for Go, which then takes a password's beginning
# for a port.
_UNFIT = re.compile(r"%(?![0-9A-Fa-f]{2})|%00|[\x00-\x1f\x7f#]")


@dataclass(frozen=True)
class DatabaseUrl:
    """Where PostgreSQL is. `prepare` is False behind a pooler that assigns sessions by transaction."""

    conninfo: str = field(repr=False)
    max_connections: int | None = None
    prepare: bool = True

    def __str__(self) -> str:
        return "set"


def parse_database_url(text: str) -> DatabaseUrl:
    """Read a URL or key=value pairs. Raises ValueError that shows nothing of the text."""
    try:
        pairs = _from_url(text) if re.match(r"\w+://", text) else _from_pairs(text)
        pgx = {key: pairs.pop(key) for key in list(pairs) if key in _PGX}
        settings = {key: pairs.pop(key) for key in list(pairs) if key not in _KNOWN}
        if settings:
            pairs["options"] = " ".join(filter(None, (pairs.get("options", ""), *map(_option, settings.items()))))
        pairs.setdefault("application_name", "secrets-bridge-worker")
        conninfo = make_conninfo(**pairs)
        _check_ports(pairs.get("port", ""))
    except (ValueError, psycopg.Error):
        raise ValueError(f"not a PostgreSQL URL; {_ACCEPTED}") from None
    unprepared = pgx.get("default_query_exec_mode") in _UNPREPARED or pgx.get("statement_cache_capacity") == "0"
    return DatabaseUrl(conninfo, _max_connections(pgx.get("pool_max_conns", "")), not unprepared)


def _from_url(text: str) -> dict[str, str]:
    """Read a URL: libpq reads all but the query, of which it refuses what it does not know."""
    scheme, _, rest = text.partition("://")
    if scheme.lower() not in _SCHEMES or _UNFIT.search(rest):
        raise ValueError
    location, _, parameters = rest.partition("?")
    query = dict(parse_qsl(parameters, keep_blank_values=True, strict_parsing=bool(parameters), errors="strict"))
    hosts, slash, path = location.partition("/")
    url = f"postgresql://{hosts}{slash}{quote(path, safe='/%')}"
    return {key: str(value) for key, value in conninfo_to_dict(url).items() if value is not None} | query


def _from_pairs(text: str) -> dict[str, str]:
    """Read key=value pairs with libpq's quotes and backslashes; libpq itself would refuse keys it does not know."""
    if "\0" in text:
        raise ValueError
    pairs: dict[str, str] = {}
    position = 0
    text = text.lstrip()
    while position < len(text):
        match = _PAIR.match(text, position)
        if match is None:
            raise ValueError
        pairs[match[1]] = re.sub(r"\\(.)", r"\1", match[2] if match[2] is not None else match[3], flags=re.DOTALL)
        position = match.end()
    if not pairs:
        raise ValueError
    return pairs


def _option(pair: tuple[str, str]) -> str:
    key, value = pair
    if not _NAME.fullmatch(key):
        raise ValueError
    escaped = re.sub(r"([\s\\])", r"\\\1", value, flags=re.ASCII)
    return f"-c {key}={escaped}"


def _max_connections(text: str) -> int | None:
    if not text:
        return None
    try:
        number = parse_int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError("pool_max_conns in the URL must be a number of at least 1")
    return number


def _check_ports(ports: str) -> None:
    """Raise ValueError for a bad port, which libpq notices only when it connects."""
    for port in filter(None, ports.split(",")):
        if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65_536):  # noqa: PLR2004
            raise ValueError
