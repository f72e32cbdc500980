"""The probe server under connections that drip, idle, flood and stop reading, and where it listens."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from app.worker import probe_server
from app.worker.probe_server import MOST_CONNECTIONS, MOST_REQUEST, Answer, Pending, ProbeServer, Request, listen
from tests.support.waiting import HUNG

OK = b"fine"


@contextmanager
def serving(answer: Callable[[Request], Pending]) -> Iterator[int]:
    """Serve in a thread until the body has run, and give the port."""
    with listen("127.0.0.1", 0) as listener:
        server, over = ProbeServer(listener, answer), threading.Event()

        def serve() -> None:
            while not over.is_set():
                server.turn(0.02)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            over.set()
            thread.join()
            server.close()


def answer(request: Request) -> Pending:
    return Pending(lambda: Answer(200, OK)) if request.path == "/healthz" else Pending(lambda: Answer(404, b"no"))


@pytest.fixture
def port() -> Iterator[int]:
    with serving(answer) as port:
        yield port


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_server, "LIFETIME", 0.5)


def dial(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=HUNG)


def rest(client: socket.socket) -> bytes:
    """Read until the server closes; a reset ends it too."""
    said = b""
    with suppress(ConnectionError):
        while data := client.recv(65536):
            said += data
    return said


def ask(port: int, request: bytes = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") -> bytes:
    with dial(port) as client:
        client.sendall(request)
        return rest(client)


def descriptors() -> list[int]:
    return [int(one.name) for one in Path("/dev/fd").iterdir()]


def test_answers_any_method_and_then_closes_and_does_not_say_what_it_is(port: int) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4\r\nConnection: close\r\n\r\n"
    for method in (b"GET", b"POST", b"OPTIONS", b"FOO"):
        assert ask(port, method + b" /healthz?x=1 HTTP/1.0\r\n\r\n") == head + OK
    assert ask(port, b"HEAD /healthz HTTP/1.1\r\n\r\n") == head
    assert ask(port, b"GET /healthz HTTP/1.1\n\n") == head + OK
    assert ask(port, b"GET /../etc/passwd HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 404 ")


def test_an_answer_may_depend_on_the_method_and_may_have_headers() -> None:
    def by_method(request: Request) -> Pending:
        return Pending(lambda: Answer(405, b"", headers=(("Allow", request.method),)))

    with serving(by_method) as port:
        assert b"\r\nAllow: FOO\r\n\r\n" in ask(port, b"FOO /?x HTTP/1.1\r\n\r\n")


def test_a_slow_reader_gets_all_of_a_large_answer() -> None:
    body = bytes(range(256)) * 4096  # more than any buffer on its way
    with serving(lambda _request: Pending(lambda: Answer(200, body))) as port, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(HUNG)
        client.connect(("127.0.0.1", port))
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        said = b""
        while data := client.recv(8192):
            said += data
        assert said.partition(b"\r\n\r\n")[2] == body


@pytest.mark.parametrize(
    "request_", [b"\x00\xff\r\n\r\n", b"GET /healthz\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n", b"\r\n\r\n"]
)
def test_what_is_no_request_is_refused(port: int, request_: bytes) -> None:
    assert ask(port, request_).startswith(b"HTTP/1.1 400 ")


def test_a_body_is_not_waited_for(port: int) -> None:
    with dial(port) as client:
        client.sendall(b"POST /healthz HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n")
        assert rest(client).endswith(OK)


def test_headers_without_an_end_are_refused(port: int) -> None:
    said = ask(port, b"GET /healthz HTTP/1.1\r\nX: " + b"x" * MOST_REQUEST)
    assert said.startswith(b"HTTP/1.1 431 ")


@pytest.mark.usefixtures("short")
def test_one_that_drips_has_one_deadline(port: int) -> None:
    with dial(port) as client:
        began = time.monotonic()
        with suppress(ConnectionError):
            client.sendall(b"GET /healthz HTTP/1.1\r\n")
            while time.monotonic() - began < HUNG:
                client.sendall(b"X-A: b\r\n")
                time.sleep(0.05)
        assert time.monotonic() - began < HUNG


@pytest.mark.usefixtures("short")
def test_one_that_does_not_read_its_answer_has_the_same_deadline() -> None:
    with serving(lambda _request: Pending(lambda: Answer(200, b"x" * 50_000_000))) as port, dial(port) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        time.sleep(1.0)  # more than it may live
        assert len(rest(client)) < 50_000_000


def test_many_idle_ones_keep_nobody_away_and_cost_neither_threads_nor_files(port: int) -> None:
    threads, files = set(threading.enumerate()), len(descriptors())
    with ExitStack() as stack:
        for _ in range(5):
            idle = [stack.enter_context(dial(port)) for _ in range(100)]
            for client in idle:
                with suppress(ConnectionError):
                    client.sendall(b"GET /healthz HTTP/1.1\r\n")
            assert ask(port).endswith(OK)
        assert set(threading.enumerate()) <= threads
        assert len(descriptors()) - files <= 500 + MOST_CONNECTIONS


def test_no_descriptor_left_costs_the_oldest_connection_and_nothing_else() -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving(answer) as port, ExitStack() as stack:
        own = [stack.enter_context(dial(port)) for _ in range(3)]
        waiting = [stack.enter_context(socket.socket()) for _ in range(3)]
        assert ask(port).endswith(OK)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(descriptors()), limits[1]))
        try:
            for client in waiting:
                client.settimeout(HUNG)
                client.connect(("127.0.0.1", port))
            waiting[-1].sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
            assert rest(waiting[-1]).endswith(OK)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert rest(own[0]) == b""


def test_others_are_answered_while_one_waits() -> None:
    result: Future[bytes] = Future()

    def slow(request: Request) -> Pending:
        waits = request.path == "/slow"
        return Pending(lambda: Answer(200, result.result()), [result]) if waits else answer(request)

    with serving(slow) as port, dial(port) as waiting:
        waiting.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
        for _ in range(20):
            assert ask(port).endswith(OK)
        result.set_result(b"done")
        assert rest(waiting).endswith(b"done")


def test_an_answer_is_made_without_the_results_that_are_late() -> None:
    with serving(lambda _request: Pending(lambda: Answer(503, b"late"), [Future()], 0.05)) as port:
        assert ask(port).endswith(b"late")


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "0:0:0:0:0:0:0:0", "::ffff:0.0.0.0"])
def test_a_wildcard_listens_on_both_families(host: str) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with listen(host, 0) as listener:
        port = listener.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            try:
                socket.create_connection((address, port), timeout=HUNG).close()
            except OSError as error:
                if address == "::1" and error.errno in probe_server._NO_IPV6:
                    pytest.skip("this machine has no IPv6")
                raise


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_address_listens_on_itself_alone(host: str) -> None:
    with listen(host, 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        with pytest.raises(OSError, match="in use"):
            listen(host, listener.getsockname()[1])
