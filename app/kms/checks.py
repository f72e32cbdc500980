"""What is checked at boot of a key service's address and of its authorities."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from app.core.bounded_input import content
from app.core.egress import literal, never_dialled


def is_loopback(host: str) -> bool:
    """Return whether a host of a URL is this host's own loopback: what is sent there leaves no machine."""
    address = literal(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def url_problem(name: str, url: str | None, *, dev: bool) -> Iterator[str]:
    """Yield what is wrong with a key service's address; `dev` is whether SB_ENV is dev."""
    if not url:
        return
    try:
        parts = urlsplit(url)
        fine = (
            bool(parts.hostname) and parts.port != 0 and not parts.username and not parts.query and not parts.fragment
        )
    except ValueError:
        fine, parts = False, urlsplit("")
    host = (parts.hostname or "") if fine else ""
    if not fine or not fits_header(url) or parts.scheme not in ("https", "http"):
        yield f"{name}: not a URL; accepted: https://host or https://host:port, and http:// with SB_ENV=dev"
    elif parts.scheme == "http" and not dev and not is_loopback(host):
        yield (
            f"{name}: plain http:// is for SB_ENV=dev and for this host's loopback such as http://127.0.0.1:8200 only; "
            "accepted: https://"
        )
    elif (address := literal(host)) and never_dialled(address):
        yield f"{name}: an address that is never dialled, such as a metadata service's"


def ca_problem(name: str, path: str | None) -> Iterator[str]:
    """Yield what is wrong with a PEM file of authorities."""
    if not path:
        return
    from app.core.http import tls_context  # noqa: PLC0415 - an HTTP client of 17 MiB, only where tokens are opened

    try:
        tls_context(pem=pem(path))
    except OSError:
        yield f"{name}: names a file that cannot be read; accepted: the path of a PEM file"
    except ValueError as error:
        yield f"{name}: {error}"


def pem(path: str | Path) -> str:
    """Return a PEM file; what stands around its certificates may be in any encoding. Raises OSError."""
    return content(path).decode("ascii", errors="replace")


def fits_header(text: str) -> bool:
    """Return whether a text is printable ASCII without spaces."""
    return text.isascii() and text.isprintable() and " " not in text
