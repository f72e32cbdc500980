"""The files of a connection to PostgreSQL, as libpq takes them.

pgx verifies by the system's certificates where no others are named, and takes any file that it can read. libpq wants
a file of certificates by name, and refuses a key or a list of passwords that others may read: what a mounted Secret is.
Such a file is given to it as a copy in memory.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path

from app.storage.files.private import is_there, private
from app.storage.files.roots import system_roots

_VERIFYING = ("verify-ca", "verify-full")
_UNVERIFIED = ("allow", "prefer")
# A file that is not there, so that libpq looks for no other.
_NONE = "/nonexistent/root.crt"
#: Stands for the system's certificates.
SYSTEM = "system"


def home() -> Path:
    """Return where this process's user has its files; a path that is not there when that is nowhere."""
    return Path(os.environ.get("HOME") or "/nonexistent")


def add_defaults(settings: dict[str, str]) -> None:
    """Add the files that pgx uses where none are named, and take away those that it does not."""
    if _without_tls(settings):
        return
    certificate, key, roots = (
        home() / ".postgresql" / name for name in ("postgresql.crt", "postgresql.key", "root.crt")
    )
    if not {"sslcert", "sslkey"} & settings.keys():
        if is_there(certificate) and is_there(key):
            settings |= {"sslcert": str(certificate), "sslkey": str(key)}
        elif is_there(certificate):
            settings["sslcertmode"] = "disable"
    if "sslrootcert" not in settings and is_there(roots):
        settings["sslrootcert"] = str(roots)
    if settings.get("sslmode") in _VERIFYING:
        settings.setdefault("sslrootcert", SYSTEM)


def problems(settings: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield a parameter's name and what is wrong with its file."""
    if not _without_tls(settings):
        yield from _problem_of_roots(settings.get("sslrootcert"))
        yield from _problem_of_pair(settings)


def _without_tls(settings: dict[str, str]) -> bool:
    return all(host.startswith("/") for host in settings.get("host", "").split(","))


def _problem_of_roots(roots: str | None) -> Iterator[tuple[str, str]]:
    name = "sslrootcert"
    if roots == SYSTEM:
        if not system_roots():
            yield name, "is needed: there are no certificates of authorities on this system, nor in SSL_CERT_FILE"
    elif roots:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=roots)
        except ssl.SSLError:
            yield name, "names a file without certificates; accepted: PEM"
        except (OSError, ValueError):
            yield name, "names a file that cannot be read"


def _problem_of_pair(settings: dict[str, str]) -> Iterator[tuple[str, str]]:
    certificate, key = settings.get("sslcert"), settings.get("sslkey")
    if not certificate or not key:
        if certificate or key:
            yield "sslkey" if certificate else "sslcert", "is needed: sslcert and sslkey go together"
        return
    for name in ("sslcert", "sslkey"):
        if (
            not is_there(Path(settings[name]))
            or not Path(settings[name]).is_file()
            or not os.access(settings[name], os.R_OK)
        ):
            yield name, "names a file that cannot be read"
            return
    password = settings.get("sslpassword", "")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, lambda: password)
    except (OSError, ValueError):
        yield "sslkey", "is not the key of sslcert, or sslpassword does not open it; accepted: PEM"


def as_libpq_takes_them(parameters: dict[str, str]) -> dict[str, str]:
    """Return parameters with the files that libpq would refuse replaced by copies."""
    replaced = dict(parameters)
    if replaced.get("sslrootcert") == SYSTEM:
        replaced["sslrootcert"] = system_roots()
    elif replaced.get("sslrootcert") and replaced.get("sslmode", "prefer") in _UNVERIFIED:
        replaced["sslrootcert"] = _NONE  # else a server that it does not fit would be spoken to in plain text
    passwords = home() / ".pgpass"
    if "password" not in replaced and "passfile" not in replaced and is_there(passwords):
        replaced["passfile"] = str(passwords)
    for name in ("sslkey", "passfile"):
        if name in replaced:
            replaced[name] = private(replaced[name])
    return replaced
