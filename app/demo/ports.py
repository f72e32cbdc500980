"""Ports for servers that are started as processes of their own, here and in the tests."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def reserved_port(*beside: int) -> Iterator[int]:
    """Hold a free port of the loopback interface, for a server that is started while the body runs.

    Held with it are the ports that are so far above it, for a server that binds those as well.

    A port that was only asked for may be taken by anybody before the server has come up. On Linux a socket that is
    bound and does not listen keeps all others off, but for a server that is given this very port and sets SO_REUSEADDR,
    as servers do. Other systems would refuse the server too: there the port is asked for, and no more.
    """
    with ExitStack() as refused:  # which are held until one is found, so that none is given out again
        while True:
            holders = refused.enter_context(ExitStack())
            port = _held(holders, 0)
            try:
                for distance in beside:
                    _held(holders, port + distance)
            except (OSError, OverflowError):  # taken, or above the last one
                continue
            held = holders.pop_all()
            break
    with held:
        if sys.platform != "linux":
            held.close()
        yield port


def _held(holders: ExitStack, port: int) -> int:
    """Bind a port, 0 for any that is free, and return it."""
    holder = holders.enter_context(socket.socket())
    holder.bind(("127.0.0.1", port))
    # Only now: with it before, one who holds the port already, as we do, would not have kept us off.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound: int = holder.getsockname()[1]
    return bound
