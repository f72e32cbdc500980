"""What a process under the guard can let out, by sockets of the guard's class and by those below it."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from app.notify.guard import Guard, guarded
from tests.support.processes import ROOT
from tests.support.waiting import HUNG

START = """
import os, socket, ssl, subprocess, sys, _socket
from ipaddress import ip_network
from app.notify.egress import EgressPolicy
from app.notify.guard import enforce
allowed = [ip_network(name) for name in sys.argv[2].split(",") if name]
blocked = enforce(EgressPolicy(allowed))
where = ("127.0.0.1", int(sys.argv[1]))
try:
    {way}
except PermissionError:
    pass
print(len(blocked))
"""
DATAGRAM = "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
WAYS = {
    "connect": "socket.create_connection(where, 5)",
    "connect_ex": "socket.socket().connect_ex(where)",
    "of a name": "socket.create_connection(('localhost', where[1]), 5)",
    "below": "_socket.socket(socket.AF_INET, socket.SOCK_STREAM).connect(where)",
    "below, by name": "_socket.socket(socket.AF_INET, socket.SOCK_STREAM).connect(('localhost', where[1]))",
    "in TLS": "ssl.create_default_context().wrap_socket(socket.socket(), server_hostname='x').connect(where)",
    "sendto": f"{DATAGRAM}.sendto(b'x', where)",
    "sendto with flags": f"{DATAGRAM}.sendto(b'x', 0, where)",
    "sendmsg": f"{DATAGRAM}.sendmsg([b'x'], [], 0, where)",
    "datagrams connected": f"{DATAGRAM}.connect(where)",
    "datagrams below": "_socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', where)",
    "sendmsg below": "_socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendmsg([b'x'], [], 0, where)",
}
OTHER_WAYS = {
    "a local socket": "socket.socket(socket.AF_UNIX).connect('/dev/log')",
    "the system's log": "import syslog; syslog.syslog('x')",
    "a program": "subprocess.run(['true'])",
    "a shell": "os.system('true')",
}


@pytest.fixture
def listeners() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give a TCP and a UDP socket that listen on the same port."""
    for _ in range(100):
        stream = socket.create_server(("127.0.0.1", 0))
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            datagrams.bind(stream.getsockname())
        except OSError:
            stream.close()
            datagrams.close()
            continue
        with closing(stream), closing(datagrams):
            stream.setblocking(False)
            datagrams.setblocking(False)
            yield stream, datagrams
        return


def tried(way: str, port: int, allowed: str) -> int:
    """Go one way out in a process under the guard; return how often it was refused."""
    words = [sys.executable, "-c", START.format(way=way), str(port), allowed]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout)


def arrived(listeners: tuple[socket.socket, socket.socket]) -> int:
    number = 0
    stream, datagrams = listeners
    try:
        stream.accept()[0].close()
        number += 1
    except BlockingIOError:
        pass
    try:
        datagrams.recv(100)
        number += 1
    except BlockingIOError:
        pass
    return number


@pytest.mark.parametrize("way", WAYS)
def test_no_way_leads_to_a_closed_address(listeners: tuple[socket.socket, socket.socket], way: str) -> None:
    assert tried(WAYS[way], listeners[0].getsockname()[1], "") >= 1
    assert arrived(listeners) == 0


@pytest.mark.parametrize("way", ["connect", "of a name", "below", "sendto", "sendmsg", "datagrams below"])
def test_ways_to_an_allowed_network_are_open(listeners: tuple[socket.socket, socket.socket], way: str) -> None:
    assert tried(WAYS[way], listeners[0].getsockname()[1], "127.0.0.0/8,::1/128") == 0
    assert arrived(listeners) == 1


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_other_ways_out_are_closed_whatever_is_allowed(way: str) -> None:
    assert tried(OTHER_WAYS[way], 1, "127.0.0.0/8") >= 1


class Public:
    """The policy for a public address, which no test dials: open for TLS, closed for what is in the clear."""

    def allows(self, address: str, *, cleartext: bool = False) -> bool:
        """Return whether it is not in the clear."""
        assert address == "127.0.0.1"
        return not cleartext


def test_nothing_but_tls_leaves_for_a_public_address() -> None:
    got = bytearray()

    def listen(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            while data := connection.recv(1000):
                got.extend(data)

    guard = Guard(Public())
    with socket.create_server(("127.0.0.1", 0)) as server:
        listening = threading.Thread(target=listen, args=[server])
        listening.start()
        with guarded(guard)() as connection:
            connection.connect(server.getsockname())
            for refused in (b"POST / HTTP/1.1\r\n", b"AUTH PLAIN x\r\n", b"EHLO x\r\nAUTH PLAIN x\r\n"):
                with pytest.raises(PermissionError):
                    connection.sendall(refused)
                with pytest.raises(PermissionError):
                    connection.send(refused)
                with pytest.raises(PermissionError):
                    connection.sendmsg([refused])
            for fine in (b"EHLO worker\r\n", b"STARTTLS\r\n"):
                connection.sendall(fine)
        listening.join(HUNG)
    assert bytes(got) == b"EHLO worker\r\nSTARTTLS\r\n"
    assert set(guard.blocked) == {"cleartext"}
    with guarded(guard)(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, pytest.raises(PermissionError):
        datagrams.sendto(b"x", ("127.0.0.1", 9))
