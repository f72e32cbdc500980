"""Keeps a process that runs somebody else's code to the egress policy, whichever way out that code takes.

Two layers. Sockets of a class of ours look names up, dial what is allowed, and let nothing out in the clear where only
TLS may go. Below them the interpreter itself reports every connection and datagram, those of sockets of any class too,
and whatever is not an address that is allowed is refused there, like other ways out: programs, the system's log.
"""

from __future__ import annotations

import re
import socket
import sys
from typing import Any, Protocol

#: What may be said in the clear to a mail server before TLS.
_BEFORE_TLS = re.compile(rb"(?:ehlo|helo|starttls|noop|rset|quit)\b[^\r\n]{0,255}\r\n", re.IGNORECASE)
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
#: Reports of the interpreter that are a way out by themselves.
_OTHER_WAYS = ("subprocess.", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.fork", "pty.", "syslog.")


class Policy(Protocol):
    """Which addresses may be dialled; without TLS only where that is allowed."""

    def allows(self, address: str, *, cleartext: bool = False) -> bool:
        """Return whether an address may be dialled."""
        ...


class Guard:
    """A policy, and what it has refused: addresses, or the names of other ways out."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.blocked: list[str] = []

    def refuse(self, what: str) -> PermissionError:
        """Note what is refused; return what to raise."""
        self.blocked.append(what)
        return PermissionError()

    def dialled(self, connection: socket.socket, address: Any) -> Any:
        """Return the address to dial, looked up. Raises PermissionError when it may not be."""
        if connection.family not in _FAMILIES:
            raise self.refuse("not IP")
        stream = connection.type == socket.SOCK_STREAM
        resolved = socket.getaddrinfo(address[0], address[1], connection.family, socket.SOCK_STREAM)[0][4]
        if not self.policy.allows(str(resolved[0]), cleartext=not stream):
            raise self.refuse(str(resolved[0]))
        return resolved

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Refuse what the interpreter reports, unless it goes to an address that is allowed."""
        if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            connection, address = arguments[:2]
            if address is None:  # to where it is connected
                return
            family = connection.family in _FAMILIES and isinstance(address, tuple)
            if not family or not self._allowed(str(address[0]), clear=connection.type != socket.SOCK_STREAM):
                raise self.refuse("address")
        elif event.startswith(_OTHER_WAYS):
            raise self.refuse(event)

    def _allowed(self, address: str, *, clear: bool) -> bool:
        try:
            return self.policy.allows(address, cleartext=clear)
        except ValueError:  # a name; the socket would look it up once more
            return False


def guarded(guard: Guard) -> type[socket.socket]:  # noqa: C901 - a class, once for each guard
    """Return the class of sockets that keep to a policy."""

    class GuardedSocket(socket.socket):
        _only_tls = False

        def connect(self, address: Any) -> None:
            super().connect(self._dialled(address))

        def connect_ex(self, address: Any) -> int:
            return super().connect_ex(self._dialled(address))

        def send(self, data: Any, *flags: int) -> int:
            return super().send(self._let_out(data), *flags)

        def sendall(self, data: Any, *flags: int) -> None:
            super().sendall(self._let_out(data), *flags)

        def sendto(self, data: Any, *rest: Any) -> int:
            *flags, address = rest
            return super().sendto(self._let_out(data), int(flags[0]) if flags else 0, guard.dialled(self, address))

        def sendmsg(self, buffers: Any, ancillary: Any = (), flags: int = 0, address: Any = None) -> int:
            pieces = [self._let_out(data) for data in buffers]
            where = () if address is None else (guard.dialled(self, address),)
            return super().sendmsg(pieces, ancillary, flags, *where)

        def sendfile(self, *_: Any, **__: Any) -> int:
            raise guard.refuse("sendfile")

        def _dialled(self, address: Any) -> Any:
            resolved = guard.dialled(self, address)
            self._only_tls = not guard.policy.allows(str(resolved[0]), cleartext=True)
            return resolved

        def _let_out(self, data: Any) -> Any:
            """Return what is sent by this very class and so in the clear: the one of TLS writes by another way."""
            if self._only_tls and not _BEFORE_TLS.fullmatch(bytes(data)):
                raise guard.refuse("cleartext")
            return data

    return GuardedSocket


def enforce(policy: Policy) -> list[str]:
    """Put this process under a policy for the rest of its life; return the list that refusals are added to."""
    guard = Guard(policy)
    socket.socket = guarded(guard)  # type: ignore[misc]
    sys.addaudithook(guard.audit)
    return guard.blocked
