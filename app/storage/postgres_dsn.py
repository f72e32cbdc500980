"""DATABASE_URL as the Go worker's driver reads it, translated for libpq.

pgx takes any unknown parameter for a server setting and has some of its own; libpq refuses both. pgx reads its
environment and a service file beneath the URL; so does libpq, and not quite the same of them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, quote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from app.core.bounded_input import content
from app.storage.files import postgres as postgres_files
from app.storage.postgres_parameters import DatabaseUrl, WrongParametersError, translate

#: The variables that pgx reads, and the parameters that they stand for where the URL has none.
ENVIRONMENT = {
    "PGHOST": "host",
    "PGPORT": "port",
    "PGDATABASE": "dbname",
    "PGUSER": "user",
    "PGPASSWORD": "password",
    "PGPASSFILE": "passfile",
    "PGAPPNAME": "application_name",
    "PGCONNECT_TIMEOUT": "connect_timeout",
    "PGSSLMODE": "sslmode",
    "PGSSLKEY": "sslkey",
    "PGSSLCERT": "sslcert",
    "PGSSLSNI": "sslsni",
    "PGSSLROOTCERT": "sslrootcert",
    "PGSSLPASSWORD": "sslpassword",
    "PGSSLNEGOTIATION": "sslnegotiation",
    "PGTARGETSESSIONATTRS": "target_session_attrs",
    "PGSERVICE": "service",
    "PGSERVICEFILE": "servicefile",
    "PGTZ": "timezone",
    "PGOPTIONS": "options",
    "PGMINPROTOCOLVERSION": "min_protocol_version",
    "PGMAXPROTOCOLVERSION": "max_protocol_version",
    "PGCHANNELBINDING": "channel_binding",
    "PGREQUIREAUTH": "require_auth",
}
#: Variables of files that libpq reads by itself, and pgx does not.
_LIBPQ_FILES = {"PGSSLCRL": "sslcrl", "PGSSLCRLDIR": "sslcrldir"}
_ACCEPTED = "accepted: postgres://user:password@host:port/database or key=value pairs"
_SCHEMES = ("postgres", "postgresql", "pgx5")
_PAIR = re.compile(
    r"([A-Za-z_][\w.]*)\s*=\s*(?:'((?:[^'\\]|\\.)*)'\s*|((?!')(?:[^\s\\]|\\.)*)(?:\s+|\Z))", re.ASCII | re.DOTALL
)
_NAME = re.compile(r"[A-Za-z_][\w.]*", re.ASCII)
# Broken escapes, and what would end a text early: NUL for libpq, "#" for Go, which then takes a password's beginning
# for a port.
_UNFIT = re.compile(r"%(?![0-9A-Fa-f]{2})|%00|[\x00-\x1f\x7f#]")


def parse_database_url(text: str) -> DatabaseUrl:
    """Read a URL or key=value pairs. Raises ValueError, a line a problem, that shows nothing but parameters' names."""
    try:
        own = _from_url(text) if re.match(r"\w+://", text) else _from_pairs(text)
        if not all(_NAME.fullmatch(key) for key in own):
            raise ValueError  # noqa: TRY301 - one message for all that is no URL
    except (ValueError, psycopg.Error):
        raise ValueError(f"not a PostgreSQL URL; {_ACCEPTED}") from None
    variables = ENVIRONMENT | _LIBPQ_FILES
    environment = {key: value for name, key in variables.items() if (value := os.environ.get(name))}
    service: dict[str, str] = {}
    try:
        service = _service(environment | own)
        url = translate(environment | service | own)
        make_conninfo(**url.parameters)
    except WrongParametersError as error:
        names = {
            key: f"variable {name}" for name, key in variables.items() if key in environment.keys() - (service | own)
        }
        lines = [f"{names.get(key, f'parameter {key}')} {problem}" for key, problem in error.problems.items()]
        raise ValueError("\n".join(lines)) from None
    except psycopg.Error:
        raise ValueError(f"not a PostgreSQL URL; {_ACCEPTED}") from None
    return url


def _from_url(text: str) -> dict[str, str]:
    """Read a URL: libpq reads all but the query, of which it refuses what it does not know."""
    scheme, _, rest = text.partition("://")
    if scheme.lower() not in _SCHEMES or _UNFIT.search(rest):
        raise ValueError
    location, _, parameters = rest.partition("?")
    query = {
        _canonical(key): value
        for key, value in parse_qsl(
            parameters, keep_blank_values=True, strict_parsing=bool(parameters), errors="strict"
        )
    }
    if query.get("ssl") == "true":  # as JDBC's URLs have it
        query = {"sslmode": "require"} | {key: value for key, value in query.items() if key != "ssl"}
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
        value = re.sub(r"\\(.)", r"\1", match[2] if match[2] is not None else match[3], flags=re.DOTALL)
        pairs[_canonical(match[1])] = value
        position = match.end()
    if not pairs:
        raise ValueError
    return pairs


def _canonical(key: str) -> str:
    return "dbname" if key == "database" else key


def _service(settings: dict[str, str]) -> dict[str, str]:
    """Return what a service file has under the name of the service. Raises WrongParametersError."""
    if not (name := settings.get("service")):
        return {}
    file = settings.get("servicefile") or postgres_files.home() / ".pg_service.conf"
    try:
        if not Path(file).is_file():  # libpq may read it as well, and waits for a pipe
            raise ValueError  # noqa: TRY301 - one message for all that is no such file
        lines = content(file).decode().splitlines()
    except (OSError, ValueError):
        problem = "names a file that cannot be read; accepted: the path of a text file of 4 MiB at most"
        raise WrongParametersError({"servicefile": problem}) from None
    found: dict[str, str] | None = None
    section = ""
    for line in map(str.strip, lines):
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
            if section == name:
                found = {}
        elif section == name and found is not None and "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found[_canonical(key.strip())] = value.strip()
    if found is None:
        raise WrongParametersError({"service": "names none of those in the service file"})
    return found
