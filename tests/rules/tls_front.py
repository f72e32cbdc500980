"""TLS in front of a server that has none, as a proxy of a database's host does it."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress

from tests.support.http_server import Rude
from tests.support.waiting import HUNG

#: What libpq says first, eight bytes, before it speaks TLS; and the answer that it may.
_ASKED, _YES = 8, b"S"


class TlsFront(Rude):
    """Passes on what arrives by TLS to a port of this machine; with `postgres` it is asked for TLS first."""

    def __init__(self, port: int, context: ssl.SSLContext, *, postgres: bool = False) -> None:
        self._behind, self._context, self._postgres = port, context, postgres
        #: How many bytes arrived in connections whose client has taken the certificate.
        self.heard = 0
        super().__init__(self._pass_on)

    def _pass_on(self, plain: socket.socket, over: threading.Event) -> None:
        del over
        plain.settimeout(HUNG)
        with suppress(OSError):
            if self._postgres:
                plain.recv(_ASKED)
                plain.sendall(_YES)
            with (
                self._context.wrap_socket(plain, server_side=True) as client,
                socket.create_connection(("127.0.0.1", self._behind)) as server,
            ):
                back = threading.Thread(target=_copy, args=[server, client], daemon=True)
                back.start()
                while content := client.recv(65_536):
                    self.heard += len(content)
                    server.sendall(content)
                server.shutdown(socket.SHUT_RDWR)
                back.join(HUNG)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while content := source.recv(65_536):
            target.sendall(content)
        target.shutdown(socket.SHUT_RDWR)
