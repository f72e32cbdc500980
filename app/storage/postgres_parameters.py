"""What each parameter of pgx means to libpq, and which values it may have.

libpq notices a wrong value only when it connects, and then says so in the words that it also has for a server's faults.
So each is looked at here, by pgx's rules, before anybody is asked.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

from psycopg.conninfo import make_conninfo
from psycopg.pq import Conninfo

from app.core.values import parse_duration, parse_int
from app.storage.files import postgres as postgres_files
from app.storage.files.private import is_there

# Not the defaults: for these libpq reads a service file that PGSERVICE names, whatever kind of file that is.
_KNOWN = frozenset(option.keyword.decode() for option in Conninfo.parse(b""))
# pgx's own, which mean nothing to libpq. All that begin with `pool_` are its pool's.
_PGX = frozenset(
    [
        *("default_query_exec_mode", "statement_cache_capacity", "description_cache_capacity"),
        *("service", "servicefile", "krbspn", "min_protocol_version", "max_protocol_version", "sslnegotiation"),
        *("require_auth", "channel_binding", "sslsni"),
    ]
)
#: Server settings that libpq sends as a startup packet's own, as pgx does, and not among `options`: poolers take these.
_STARTUP = {"timezone": "PGTZ", "datestyle": "PGDATESTYLE"}
_UNPREPARED = ("exec", "simple_protocol", "cache_describe", "describe_exec")
_VERSIONS = ("3.0", "3.2", "latest")
_WORDS = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "channel_binding": ("disable", "prefer", "require"),
    "min_protocol_version": _VERSIONS,
    "max_protocol_version": _VERSIONS,
    "default_query_exec_mode": ("cache_statement", *_UNPREPARED),
}
_MOST_INT = 2**63
_METHODS = ("password", "md5", "gss", "sspi", "scram-sha-256", "oauth", "none")
_ANY = "a number"
_NUMBERS = {
    "connect_timeout": (0, "whole seconds, such as 10"),
    "pool_max_conns": (1, "a number of at least 1"),
    "pool_min_conns": (-_MOST_INT, _ANY),
    "pool_min_idle_conns": (-_MOST_INT, _ANY),
    "statement_cache_capacity": (-_MOST_INT, _ANY),
    "description_cache_capacity": (-_MOST_INT, _ANY),
}
_DURATIONS = (
    *("pool_max_conn_lifetime", "pool_max_conn_lifetime_jitter", "pool_max_conn_idle_time"),
    *("pool_health_check_period", "pool_ping_timeout"),
)
_MOST_PORT = 65_535
_PORT = re.compile(r"0{0,9}[1-9][0-9]{0,4}")
#: Seconds that the making of a connection may take at most, as in pgx's pool.
LONGEST_CONNECT = 120
# Where servers have their sockets; pgx takes the first that is there.
_SOCKETS = ("/var/run/postgresql", "/private/tmp", "/tmp")  # noqa: S108 - PostgreSQL's


class WrongParametersError(ValueError):
    """Parameters have values that pgx would not take: the names, and what is wrong with each."""

    def __init__(self, problems: dict[str, str]) -> None:
        super().__init__()
        self.problems = problems


@dataclass(frozen=True)
class DatabaseUrl:
    """Where PostgreSQL is. `prepare` is False behind a pooler that assigns sessions by transaction."""

    parameters: dict[str, str] = field(repr=False)
    max_connections: int | None = None
    prepare: bool = True
    #: How long the making of a connection may take, where that is said.
    connect_seconds: int | None = None
    #: Variables that libpq must find in the environment of the process that connects.
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return "set"

    @property
    def conninfo(self) -> str:
        """The connection string for libpq, with the files that it names as libpq takes them."""
        return make_conninfo(**postgres_files.as_libpq_takes_them(self.parameters))


def translate(settings: dict[str, str]) -> DatabaseUrl:
    """Return what these parameters of pgx mean. Raises WrongParametersError."""
    settings = {key: value for key, value in settings.items() if value}
    _fill_in(settings)
    _refuse(_words(settings), _numbers(settings), _addresses(settings), _logins(settings))
    _settle_tls(settings)
    _refuse(postgres_files.problems(settings))
    size, seconds = settings.get("pool_max_conns"), int(settings.pop("connect_timeout", "0"))
    mode, capacity = settings.get("default_query_exec_mode"), settings.get("statement_cache_capacity")
    startup = {_STARTUP[key.lower()]: settings.pop(key) for key in list(settings) if key.lower() in _STARTUP}
    return DatabaseUrl(
        _libpq(settings),
        max_connections=int(size) if size else None,
        prepare=mode not in _UNPREPARED and capacity != "0",
        connect_seconds=min(seconds, LONGEST_CONNECT) or None,
        environment=startup,
    )


def _refuse(*found: Iterable[tuple[str, str]]) -> None:
    if problems := dict(chain.from_iterable(found)):
        raise WrongParametersError(problems)


def _fill_in(settings: dict[str, str]) -> None:
    """Add what pgx takes where nothing is said, and libpq would not."""
    default = next((path for path in _SOCKETS if is_there(Path(path))), "localhost")
    if "host" in settings or "hostaddr" not in settings:
        settings["host"] = ",".join(host or default for host in settings.get("host", "").split(","))
    settings.setdefault("application_name", "secrets-bridge-worker")


def _words(settings: dict[str, str]) -> Iterator[tuple[str, str]]:
    for key, words in _WORDS.items():
        if key in settings and settings[key] not in words:
            yield key, f"is not valid; accepted: {', '.join(words)}"
    least, most = settings.get("min_protocol_version", "3.0"), settings.get("max_protocol_version", "latest")
    if least != "3.0" and most == "3.0":
        yield "min_protocol_version", "is above max_protocol_version"


def _numbers(settings: dict[str, str]) -> Iterator[tuple[str, str]]:
    for key, (least, accepted) in _NUMBERS.items():
        if key in settings and not _reads(settings[key], parse_int, at_least=least):
            yield key, f"is not valid; accepted: {accepted}"
    for key in _DURATIONS:
        if key in settings and not _reads(settings[key], parse_duration, at_least=timedelta.min):
            yield key, "is not a duration; accepted: a Go duration such as 30s or 1h"


def _addresses(settings: dict[str, str]) -> Iterator[tuple[str, str]]:
    hosts, ports = settings.get("host", "").split(","), settings.get("port", "").split(",")
    if not all(_PORT.fullmatch(port) and int(port) <= _MOST_PORT for port in filter(None, ports)):
        yield "port", f"is not valid; accepted: a number from 1 to {_MOST_PORT}"
    elif len(ports) > 1 and len(ports) != len(hosts):
        yield "port", "does not fit the hosts; accepted: one port for all, or one for each"


def _logins(settings: dict[str, str]) -> Iterator[tuple[str, str]]:
    if "require_auth" in settings and not _are_methods(settings["require_auth"]):
        yield "require_auth", f"is not valid; accepted: some of {', '.join(_METHODS)}, each or none of them after a !"
    if "user" not in settings and not _has_name():
        yield "user", "is needed: this process runs as a user without a name"


def _reads(text: str, parse: Callable[[str], Any], *, at_least: Any) -> bool:
    try:
        return bool(parse(text) >= at_least)
    except ValueError:
        return False


def _are_methods(text: str) -> bool:
    names = [name.strip() for name in text.split(",")]
    negated = {name.startswith("!") for name in names}
    names = [name.removeprefix("!") for name in names]
    return len(negated) == 1 and set(names) <= set(_METHODS) and len(set(names)) == len(names)


def _has_name() -> bool:
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return True


def _settle_tls(settings: dict[str, str]) -> None:
    """Put pgx's rules about TLS in libpq's words, and add the files that it uses where none are named."""
    if settings.get("sslrootcert") == postgres_files.SYSTEM:
        settings["sslmode"] = "verify-full"
    postgres_files.add_defaults(settings)
    mode = settings.get("sslmode", "prefer")
    if settings.get("sslnegotiation") == "direct" and mode == "prefer":
        settings["sslmode"] = "require"
    elif "sslnegotiation" in settings and (settings["sslnegotiation"] != "direct" or mode in ("disable", "allow")):
        settings["sslnegotiation"] = "postgres"  # said, or libpq would look at PGSSLNEGOTIATION itself
    if settings.get("sslsni", "1") != "1":
        settings["sslsni"] = "0"
    if "require_auth" in settings:
        settings["require_auth"] = settings["require_auth"].replace(" ", "")


def _libpq(settings: dict[str, str]) -> dict[str, str]:
    own = {key: value for key, value in settings.items() if key in _KNOWN and key not in ("service", "servicefile")}
    others = [key for key in settings if key not in _KNOWN | _PGX and not key.startswith("pool_")]
    if others:
        own["options"] = " ".join(filter(None, (own.get("options"), *(_option(key, settings[key]) for key in others))))
    return own


def _option(key: str, value: str) -> str:
    escaped = re.sub(r"([\s\\])", r"\\\1", value, flags=re.ASCII)
    return f"-c {key}={escaped}"
