"""The files of a connection to PostgreSQL, as libpq takes them.

pgx verifies by the system's certificates where no others are named, and takes any file that it can read. libpq wants
a file of certificates by name, and refuses a key or a list of passwords that others may read: what a mounted Secret is.
Such a file is given to it as a copy in memory.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from app.core.bounded_input import content, contents, copied, entries
from app.storage.files.private import NONE, copy, is_there, plain, private
from app.storage.files.roots import system_roots

_VERIFYING = ("verify-ca", "verify-full")
_UNVERIFIED = ("allow", "prefer")
_PEM = "accepted: the path of a PEM file that can be read, of 4 MiB at most"
_LISTS = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)
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
    revoked = home() / ".postgresql" / "root.crl"
    if not {"sslcrl", "sslcrldir"} & settings.keys() and "sslrootcert" in settings and is_there(revoked):
        settings["sslcrl"] = str(revoked)  # libpq takes it without being told to


def problems(settings: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield a parameter's name and what is wrong with its file."""
    if "sslkeylogfile" in settings:
        yield "sslkeylogfile", "is not supported: what opens each connection would lie in a file; leave it out"
    if not _without_tls(settings):
        yield from _problem_of_roots(settings.get("sslrootcert"))
        yield from _problem_of_pair(settings)
        yield from _problem_of_lists(settings)
    passwords = settings.get("passfile")
    if passwords and "password" not in settings and is_there(Path(passwords)):  # none is no fault to pgx
        try:
            content(passwords)
        except (OSError, ValueError):
            yield "passfile", "names what cannot be read; accepted: the path of a file of 4 MiB at most"


def _without_tls(settings: dict[str, str]) -> bool:
    return all(host.startswith("/") for host in settings.get("host", "").split(","))


def _problem_of_roots(roots: str | None) -> Iterator[tuple[str, str]]:
    name = "sslrootcert"
    if roots == SYSTEM:
        if not system_roots():
            yield name, "is needed: there are no certificates of authorities on this system, nor in SSL_CERT_FILE"
    elif roots:
        try:
            with copied(roots) as path:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
        except ssl.SSLError:
            yield name, f"names a file without certificates; {_PEM}"
        except (OSError, ValueError):
            yield name, f"names a file that cannot be read; {_PEM}"


def _problem_of_pair(settings: dict[str, str]) -> Iterator[tuple[str, str]]:
    certificate, key = settings.get("sslcert"), settings.get("sslkey")
    if not certificate or not key:
        if certificate or key:
            yield "sslkey" if certificate else "sslcert", "is needed: sslcert and sslkey go together"
        return
    for name in ("sslcert", "sslkey"):
        try:
            content(settings[name])
        except (OSError, ValueError):
            yield name, f"names a file that cannot be read; {_PEM}"
            return
    password = settings.get("sslpassword", "")
    try:
        with copied(certificate) as chain, copied(key) as secret:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(chain, secret, lambda: password)
    except (OSError, ValueError):
        yield "sslkey", "is not the key of sslcert, or sslpassword does not open it; accepted: PEM"


def _problem_of_lists(settings: dict[str, str]) -> Iterator[tuple[str, str]]:
    for name in ("sslcrl", "sslcrldir"):
        if place := settings.get(name):
            try:
                if not _lists(name, place):
                    yield name, "has no list of revoked certificates; accepted: PEM"
            except (OSError, ValueError):
                yield name, "names what cannot be read; accepted: PEM, a file of 4 MiB or a directory of 16 MiB at most"


def _lists(name: str, place: str) -> bytes:
    """Return the lists of revoked certificates in a file, or in a directory. Raises OSError."""
    if name == "sslcrl":
        return b"\n".join(_LISTS.findall(content(place)))
    if not Path(place).is_dir():
        raise NotADirectoryError
    found = dict.fromkeys(
        block for text in contents(entries(place), passing_over=True) for block in _LISTS.findall(text)
    )
    return b"\n".join(found)


def as_libpq_takes_them(parameters: dict[str, str]) -> dict[str, str]:
    """Return parameters with the files that libpq would refuse, or wait for, replaced by copies."""
    replaced = dict(parameters)
    if replaced.get("sslrootcert") == SYSTEM:
        replaced["sslrootcert"] = system_roots()
    elif replaced.get("sslrootcert") and replaced.get("sslmode", "prefer") in _UNVERIFIED:
        replaced["sslrootcert"] = NONE  # else a server that it does not fit would be spoken to in plain text
    passwords = home() / ".pgpass"
    if "password" not in replaced and "passfile" not in replaced and is_there(passwords):
        replaced["passfile"] = str(passwords)
    for name, as_it_takes_it in {
        "sslrootcert": plain,
        "sslcert": plain,
        "sslkey": private,
        "passfile": private,
    }.items():
        if name in replaced:
            replaced[name] = as_it_takes_it(replaced[name])
    lists: dict[str, str] = {name: replaced.pop(name) for name in ("sslcrl", "sslcrldir") if name in replaced}
    if lists:
        # All in one file: OpenSSL would open what it finds in a directory in the middle of a handshake.
        replaced["sslcrl"] = copy(f"lists:{lists}", b"\n".join(_read_again(lists)))
        replaced["sslcrldir"] = ""  # said, or libpq would look at PGSSLCRLDIR itself
    return replaced


def _read_again(lists: dict[str, str]) -> Iterator[bytes]:
    for name, place in lists.items():
        with suppress(OSError, ValueError):
            yield _lists(name, place)
