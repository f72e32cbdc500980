"""Ports for servers that a test starts as processes of their own."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Iterator[int]:
    """Hold a free port of the loopback interface, for a server that is started while the body runs.

    A port that was only asked for may be taken by anybody before the server has come up. On Linux a socket that is
    bound and does not listen keeps all others off, but for a server that is given this very port and sets SO_REUSEADDR,
    as servers do. Other systems would refuse the server too: there the port is asked for, and no more.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        if sys.platform != "linux":
            holder.close()
        yield port
