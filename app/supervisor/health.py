"""`python -m app.supervisor.health`: ask this container's own /healthz; exit status 0 when it answers 200, else 1.

For a HEALTHCHECK in an image without curl. The standard library only, and little of it: it is run every few seconds.
"""

from __future__ import annotations

import os
import socket
import sys

#: Seconds for all of it; less than the HEALTHCHECK's own time limit, so that the answer is ours.
_WITHIN = 2.0
_EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what a server was told, not bound
_DEFAULT = "127.0.0.1:8091"


def target(address: str) -> tuple[str, int]:
    """Return the host and port at which a server that listens on `address` is reached from its own machine.

    Raises ValueError when that is no `host:port`.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    return _EVERYWHERE.get(host, host), int(port)


def alive(address: str) -> bool:
    """Return whether /healthz of the server on `address` answers 200."""
    try:
        with socket.create_connection(target(address), _WITHIN) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return connection.makefile("rb").readline(64).split()[1:2] == [b"200"]
    except (OSError, ValueError):
        return False


def main(arguments: list[str]) -> int:
    """Return the exit status; an argument is the address of another process of this container."""
    address = arguments[0] if arguments else os.environ.get("SB_WORKER_LOCAL_ADDR") or _DEFAULT
    if alive(address):
        return 0
    print(f"/healthz on {address} does not answer 200; is the process up, and listening there?")  # noqa: T201 - for who reads of a failed health check
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
