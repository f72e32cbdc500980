"""The wire between a deployment and what is outside: what meets a fault on it, and what does not any more."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from tests.chaos.surroundings.wire import Wire, until_it_hangs_up
from tests.support.http_server import Receiver, reset
from tests.support.waiting import HUNG, eventually


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        yield server


@pytest.fixture
def wire(receiver: Receiver) -> Iterator[Wire]:
    with Wire(receiver.port) as between:
        yield between


def _post(wire: Wire) -> int | str:
    try:
        return httpx.post(f"http://127.0.0.1:{wire.port}/", timeout=HUNG, trust_env=False).status_code
    except httpx.TransportError as error:
        return type(error).__name__


def test_it_passes_everything_on_until_it_is_told_otherwise_and_afterwards(wire: Wire) -> None:
    assert _post(wire) == 200
    with wire.treating(reset):
        assert _post(wire) != 200
    assert _post(wire) == 200
    assert wire.met == 1


def test_an_answer_that_is_cut_was_given(wire: Wire, receiver: Receiver) -> None:
    with wire.cutting_answers(9):
        assert _post(wire) != 200

    eventually(lambda: len(receiver.accepted) == 1)
    assert _post(wire) == 200


def test_a_closed_port_refuses_and_is_the_same_one_when_it_is_open_again(wire: Wire) -> None:
    port = wire.port
    with wire.closed():
        assert _post(wire) == "ConnectError"
    assert wire.port == port
    assert _post(wire) == 200


def test_connections_that_there_were_do_not_escape_a_fault(wire: Wire) -> None:
    with closing(socket.create_connection(("127.0.0.1", wire.port))) as old:
        old.sendall(b"POST / HTTP/1.1\r\nHost: a\r\n")
        eventually(lambda: wire.passing == 2)
        with wire.treating(until_it_hangs_up):
            old.settimeout(HUNG)
            with pytest.raises(ConnectionResetError):
                raise ConnectionResetError if old.recv(1) == b"" else AssertionError("it was answered")
