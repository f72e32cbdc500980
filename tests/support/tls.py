"""Certificates of an authority that nobody else trusts."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import trustme


class Authority:
    """A CA with its certificate in a file, and servers' contexts signed by it."""

    def __init__(self, directory: Path) -> None:
        self._ca = trustme.CA()
        self.file = directory / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def files(self, directory: Path, *names: str, **options: Any) -> tuple[Path, Path]:
        """Write a certificate for these names and its key into a directory; return their paths."""
        issued = self._ca.issue_cert(*names, **options)
        certificate, key = directory / "server.crt", directory / "server.key"
        issued.cert_chain_pems[0].write_to_path(str(certificate))
        issued.private_key_pem.write_to_path(str(key))
        return certificate, key

    @property
    def pem(self) -> str:
        """Its certificate."""
        return self.file.read_text()

    def server(self, name: str = "127.0.0.1", **options: Any) -> ssl.SSLContext:
        """Return a server's context for this name."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.certify(context, name, **options)
        return context

    def certify(self, context: ssl.SSLContext, name: str = "127.0.0.1", **options: Any) -> None:
        """Have a server's context show a certificate for this name from the next connection on."""
        self._ca.issue_cert(name, **options).configure_cert(context)
