"""HTTP/1.1 as servers speak it, well and badly, and connections that serve one request after the other."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.core import egress, http
from app.core.dialling import DiallingTransport
from app.core.http11 import Answer
from tests.support import http_server
from tests.support.http_server import Receiver, Rude
from tests.support.tls import Authority
from tests.support.waiting import HUNG, eventually

LIMIT = 64 * 1024
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def transport(pem: str | None = None, kept: int | None = None) -> DiallingTransport:
    return DiallingTransport(http.tls_context(pem=pem), egress.resolve, kept=kept)


async def ask(client: http.Client, url: str, method: str = "POST", **more: Any) -> tuple[int, bytes]:
    async with asyncio.timeout(HUNG):
        response = await client.send(client.build_request(method, url, **more))
        try:
            return response.status_code, bytes(await http.read(response, LIMIT))
        finally:
            await response.aclose()


def run(work: Callable[[http.Client], Coroutine[Any, Any, Any]], **more: Any) -> Any:
    async def whole() -> Any:
        client = http.Client(transport(**more))
        try:
            return await work(client)
        finally:
            await client.aclose()

    return asyncio.run(whole())


def sends(raw: bytes, *, reset: bool = False) -> Callable[[socket.socket, threading.Event], None]:
    """Answer each request so, and hang up."""

    def treat(connection: socket.socket, over: threading.Event) -> None:
        del over
        connection.recv(65536)
        connection.sendall(raw)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")

    return treat


def answers(raw: bytes = OK) -> Callable[[socket.socket, threading.Event], None]:
    """Answer each request so, on and on."""

    def treat(connection: socket.socket, over: threading.Event) -> None:
        del over
        while connection.recv(65536):
            connection.sendall(raw)

    return treat


def outcome(treat: Callable[[socket.socket, threading.Event], None]) -> object:
    with Rude(treat) as server:
        try:
            return run(lambda client: ask(client, server.url))
        except httpx.HTTPError as error:
            return type(error)


LONG = b"a" * 20_000
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"

#: What a server sends; what it is taken for.
SPOKEN: list[tuple[bytes, object]] = [
    (OK, (200, b"ok")),
    (b"HTTP/1.0 200 OK\r\n\r\nto the end", (200, b"to the end")),
    (b"HTTP/1.1 200 OK\r\nX-A: b\r\n\r\nto the end", (200, b"to the end")),
    (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", (200, b"ok")),
    (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", (200, b"ok")),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Empty:\r\nX-Odd: \xe4\xff\r\n\r\nok", (200, b"ok")),
    (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"")),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", (304, b"")),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, (200, b"ok")),
    (CHUNKED + b"\r\n2\r\nok\r\n0\r\n\r\n", (200, b"ok")),
    (CHUNKED + b"\r\n2;name=value\r\nok\r\n0\r\nX-Trailer: a\r\n\r\n", (200, b"ok")),
    (CHUNKED + b"\r\n2  \r\nok\r\n0\r\n\r\n", (200, b"ok")),
    (CHUNKED + b"\r\n" + b"1\r\na\r\n" * 20_000 + b"0\r\n\r\n", (200, LONG)),
    (b"HTTP/1.1 200 OK\r\nX-Long: " + LONG + b"\r\nContent-Length: 2\r\n\r\nok", (200, b"ok")),
    (OK + b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno", (200, b"ok")),
    # The end of a body may be told twice.
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\ncontent-length:2 \r\nX-A: b\r\n\r\nok", (200, b"ok")),
    (b"HTTP/1.1 200 OK\nContent-Length: 2, 2,2\n\nok", (200, b"ok")),
    (CHUNKED + b"Content-Length: 9\r\n\r\n2\r\nok\r\n0\r\n\r\n", (200, b"ok")),
    (CHUNKED + b"Content-Length: 9\r\nContent-Length: 9\r\n\r\n2\r\nok\r\n0\r\n\r\n", (200, b"ok")),
    (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok", (200, b"ok")),
    (b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nContent-Length: 2\r\n\r\n", (204, b"")),
    # What comes with an answer that is good cannot make it a bad one; its body is another matter.
    (OK + b"\x00\x01", (200, b"ok")),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", httpx.RemoteProtocolError),
    (CHUNKED + b"\r\n2\r\nok\r\n", httpx.RemoteProtocolError),
    (CHUNKED + b"\r\nnonsense\r\n", httpx.RemoteProtocolError),
    (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nok", httpx.RemoteProtocolError),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", httpx.RemoteProtocolError),
    (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", httpx.RemoteProtocolError),
    (b"HTTP/1.1 200 OK\r\nno header\r\n\r\n", httpx.RemoteProtocolError),
    (b"HTTP/1.1 200 OK\r\nX-A: b\rX-C: d\r\n\r\n", httpx.RemoteProtocolError),
    (b"HTTP/1.1 abc\r\n\r\n", httpx.RemoteProtocolError),
    (b"HTTP/1.1 000 OK\r\n\r\n", httpx.RemoteProtocolError),
    (b"HTTP/3.9 200 OK\r\n\r\n", httpx.RemoteProtocolError),
    (b"RTSP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", httpx.RemoteProtocolError),
    (b"SSH-2.0-nope\r\n\r\n", httpx.RemoteProtocolError),
    (b"\x00" * 100, httpx.RemoteProtocolError),
    (b"HTTP/1.1 200 OK\r\nX-A: ", httpx.RemoteProtocolError),
    (b"", httpx.RemoteProtocolError),
    (b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 400_000 + b"\r\n\r\n", httpx.RemoteProtocolError),
    (b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000, httpx.RemoteProtocolError),
    (CHUNKED + b"\r\n2;" + b"a" * 400_000 + b"\r\nok\r\n0\r\n\r\n", httpx.RemoteProtocolError),
    (CHUNKED + b"\r\n2\r\nok\r\n0\r\n" + b"X-A: b\r\n" * 50_000 + b"\r\n", httpx.RemoteProtocolError),
]


@pytest.mark.parametrize(("raw", "expected"), SPOKEN, ids=[str(number) for number in range(len(SPOKEN))])
def test_answers_are_taken_for_what_they_are(raw: bytes, expected: object) -> None:
    assert outcome(sends(raw)) == expected


@pytest.mark.parametrize("raw", [raw for raw, expected in SPOKEN if isinstance(expected, tuple) and len(raw) < 300])
def test_it_does_not_matter_in_which_pieces_an_answer_comes(raw: bytes) -> None:
    whole, pieces = Answer(), Answer()
    whole.feed(raw)
    for byte in raw:
        pieces.feed(bytes([byte]))
    assert (pieces.status, pieces.headers, pieces.complete, pieces.ends_with_connection) == (
        *(whole.status, whole.headers, whole.complete, whole.ends_with_connection),
    )
    assert not whole.chunks or pieces.take() == whole.take()


@pytest.mark.parametrize(
    "raw",
    [
        CHUNKED + b"\r\nnonsense\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\nok",
        CHUNKED + b"Content-Length: two\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ],
)
def test_a_status_is_there_although_its_body_is_nonsense_in_the_same_packet(raw: bytes) -> None:
    async def status(client: http.Client, url: str) -> int:
        response = await client.send(client.build_request("POST", url))
        await response.aclose()
        return response.status_code

    with Rude(sends(raw)) as server:
        assert run(lambda client: status(client, server.url)) == 200


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\nbody"])
def test_a_connection_that_is_reset_is_no_end_of_an_answer(raw: bytes) -> None:
    assert outcome(sends(raw, reset=True)) is httpx.ReadError


def test_an_answer_that_nobody_reads_is_not_taken_from_the_network() -> None:
    sent = [0]

    def treat(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not over.is_set():
            connection.sendall(b"10000\r\n" + b"a" * 65536 + b"\r\n")
            sent[0] += 65536

    async def wait(client: http.Client, url: str) -> None:
        response = await client.send(client.build_request("GET", url))
        before = -1
        while sent[0] != before:  # until the server is stopped by what nobody takes
            before = sent[0]
            await asyncio.sleep(0.2)
        assert sent[0] < 32 * 1024 * 1024  # the kernel's buffers, and ours
        first = await anext(aiter(response.stream))  # type: ignore[arg-type]
        assert len(first) < 1024 * 1024
        await response.aclose()

    with Rude(treat) as server:
        run(lambda client: wait(client, server.url))


# ------------------------------------------------------------------------------------------------------------ requests


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", {b"X-A": b"b\r\nX-C: d"}),
        ("GET", {b"X-A": b"b\nX-C: d"}),
        ("GET", {b"X-A": b"\x00"}),
        ("GET", {b"X A": b"b"}),
        ("GET", {b"": b"b"}),
        ("GET", {b"X-A:": b"b"}),
        ("GET", {b"Transfer-Encoding": b"chunked"}),
        ("GET ", {}),
        ("G\r\nET", {}),
        ("", {}),
        ("HEAD", {}),
        ("CONNECT", {}),
    ],
)
def test_what_would_be_another_request_is_not_sent(method: str, headers: dict[bytes, bytes]) -> None:
    with Receiver() as server:
        with pytest.raises(httpx.LocalProtocolError):
            run(lambda client: ask(client, server.url, method, headers=headers))
        assert server.seen == []


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "127.0.0.1:80", "/path", "http://", "file:///etc/passwd"])
def test_only_urls_of_http_are_sent_to(url: str) -> None:
    with pytest.raises(httpx.UnsupportedProtocol):
        run(lambda client: ask(client, url))


def test_a_request_is_sent_as_it_is_written() -> None:
    path = "/a%2Fb/%7e/../c%20d?x=%41&y=1+2&z=%2B"
    with Receiver() as server:
        url = server.url.replace("//", "//us%3Aer:p%40ss@") + path
        given = {"X-A": "b", "content-type": "text/plain"}
        assert run(lambda client: ask(client, url, content=b"body", headers=given)) == (200, b"ok")
    (seen,) = server.seen
    assert (seen.method, seen.path, seen.body) == ("POST", str(httpx.URL(server.url + path).raw_path, "ascii"), b"body")
    assert seen.headers == {
        "host": f"127.0.0.1:{server.port}",
        "accept": "*/*",
        "accept-encoding": "identity",
        "user-agent": http.AGENT,
        "x-a": "b",
        "content-type": "text/plain",
        "content-length": "4",
        "authorization": "Basic dXM6ZXI6cEBzcw==",
    }


# --------------------------------------------------------------------------------------------------------- connections


def test_a_connection_serves_one_request_after_the_other() -> None:
    async def thrice(client: http.Client, url: str) -> None:
        for _ in range(3):
            assert await ask(client, url) == (200, b"ok")

    with Rude(answers()) as server:
        run(lambda client: thrice(client, server.url))
        assert server.connections == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother",
        OK + b"nonsense",
        b"HTTP/1.1 204 No Content\r\n\r\n\x00",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        CHUNKED + b"Content-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ],
    ids=["close", "1.0", "another", "nonsense", "nonsense behind none", "two lengths", "length of chunks"],
)
def test_a_connection_that_may_not_serve_another_request_does_not(raw: bytes) -> None:
    async def twice(client: http.Client, url: str) -> None:
        for _ in range(2):
            assert await ask(client, url) in ((200, b"ok"), (204, b""))

    with Rude(answers(raw)) as server:
        run(lambda client: twice(client, server.url))
        assert server.connections == 2


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("more", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother"], ids=["closed", "spoken"])
@pytest.mark.parametrize("turning", [True, False], ids=["in a loop that turns", "in a loop that rests"])
def test_a_connection_that_has_ended_while_nobody_used_it_is_not_used(
    tmp_path: Path, more: bytes, turning: bool, tls: bool
) -> None:
    """A POST on it would be lost, and nobody could say whether it was taken."""
    go, done = threading.Event(), threading.Event()
    authority = Authority(tmp_path)
    context = authority.server()

    def treat(connection: socket.socket, over: threading.Event) -> None:
        spoken = context.wrap_socket(connection, server_side=True) if tls else connection
        with spoken:
            spoken.recv(65536)
            spoken.sendall(OK)
            if not done.is_set():
                go.wait(HUNG)
                spoken.sendall(more) if more else spoken.shutdown(socket.SHUT_WR)
                done.set()
                over.wait(HUNG)

    loop = asyncio.new_event_loop()
    client = http.Client(transport(authority.pem))
    with Rude(treat) as server:
        url = server.url.replace("http:", "https:") if tls else server.url
        for _ in range(2):
            assert loop.run_until_complete(ask(client, url)) == (200, b"ok")
            go.set()
            assert done.wait(HUNG)
            if turning:
                loop.run_until_complete(asyncio.sleep(0.01))
        assert server.connections == 2
    loop.run_until_complete(client.aclose())
    loop.close()


def test_no_more_connections_are_kept_than_may_be() -> None:
    under_way = threading.Barrier(5)

    def treat(connection: socket.socket, over: threading.Event) -> None:
        del over
        while connection.recv(65536):
            under_way.wait(HUNG)
            connection.sendall(OK)
        closed.append(1)

    async def many(client: http.Client, url: str) -> None:
        await asyncio.gather(*(ask(client, url) for _ in range(5)))
        while len(closed) < 3:  # noqa: ASYNC110 - another thread's
            await asyncio.sleep(0.01)

    closed: list[int] = []
    with Rude(treat) as server:
        run(lambda client: many(client, server.url), kept=2)
        eventually(lambda: len(closed) == 5)
        assert server.connections == 5


@pytest.mark.parametrize("treat", [http_server.silence, http_server.header_drip, http_server.body_drip])
def test_requests_that_are_cut_leave_nothing_behind(treat: Callable[[socket.socket, threading.Event], None]) -> None:
    """At whichever turn of the loop: neither a place that is taken, nor a connection that is open."""
    ended: list[int] = []

    def watched(connection: socket.socket, over: threading.Event) -> None:
        try:
            treat(connection, over)
        finally:
            ended.append(1)

    async def cut(client: http.Client, url: str) -> None:
        for turns in range(12):
            task = asyncio.create_task(ask(client, url))
            for _ in range(turns):
                await asyncio.sleep(0)
            await asyncio.sleep(0.002 * (turns % 3))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        with Rude(answers()) as well:
            assert await ask(client, well.url) == (200, b"ok")

    with Rude(watched) as server:
        run(lambda client: cut(client, server.url), kept=1)
        eventually(lambda: len(ended) == server.connections)


@pytest.mark.parametrize("name", ["a" * 70 + ".b", "\x00", ".", "é" * 80, "a..b"])
def test_a_name_that_no_certificate_can_have_opens_nothing(tmp_path: Path, name: str) -> None:
    authority = Authority(tmp_path)

    async def asked(client: http.Client, url: str) -> None:
        request = client.build_request("GET", url, extensions={"sni_hostname": name})
        with pytest.raises((ValueError, TypeError)):
            await client.send(request)

    with Rude(http_server.silence) as server:
        run(lambda client: asked(client, server.url.replace("http:", "https:")), pem=authority.pem)
        assert server.connections == 0


def test_httpx_is_imported_without_what_it_does_not_need_here() -> None:
    """Its own transport, and its command line; each process that sends would carry them."""
    code = "import sys, app.core.dialling; print(*{'httpcore', 'anyio', 'rich', 'click'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
