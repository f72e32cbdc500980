"""The certificates of authorities that a server is verified by where none are named: those that Go finds.

OpenSSL has a place of its own built in, which in a wheel's copy of it is that of the machine that built the wheel.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from functools import cache
from pathlib import Path

from app.core.bounded_input import contents, entries
from app.storage.files.private import copy, is_there

# In the order of Go's crypto/x509: the first file there, and the directories.
_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_DIRECTORIES = ("/etc/ssl/certs", "/etc/pki/tls/certs")
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def system_roots() -> str:
    """Return a file with the system's certificates of authorities; an empty text when there are none.

    As in Go SSL_CERT_FILE replaces the files that are looked for, and SSL_CERT_DIR the directories. Found once.
    """
    return _found(os.environ.get("SSL_CERT_FILE", ""), os.environ.get("SSL_CERT_DIR", ""))


@cache
def _found(named: str, directories: str) -> str:
    file = next((path for path in ([named] if named else _FILES) if is_there(Path(path)) and Path(path).is_file()), "")
    if file and not named and not directories:
        return file  # the usual directories have nothing else
    files = [Path(file)] if file else []
    found: dict[bytes, None] = {}
    for directory in directories.split(":") if directories else _DIRECTORIES:
        with suppress(OSError):  # more in it than there may be
            files += entries(directory)
    with suppress(OSError):
        for text in contents(files, passing_over=True):
            found |= dict.fromkeys(_CERTIFICATE.findall(text))
    return copy(f"roots:{named}:{directories}", b"\n".join(found)) if found else ""
