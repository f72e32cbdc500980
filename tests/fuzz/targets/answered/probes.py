"""Requests to the probe server, as bytes on its socket: none of them keeps it from answering the next one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hypothesis import strategies as st

from app.worker.probe_server import MOST_REQUEST, ProbeServer, listen
from app.worker.probes import Probes
from app.worker.readiness import Readiness
from tests.fuzz.target import Holds, Servers, Target
from tests.fuzz.wire import Script, scripts
from tests.support.waiting import HUNG

_GOOD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
_ODD = (
    *(
        b"GET",
        b" ",
        b"\r\n",
        b"\n\n",
        b"\n",
        b"\x00",
        b"HTTP/1.1",
        b"HTTP/9",
        b"/",
        b"/metrics",
        b"/readyz?",
        b"//",
        b"?a=%zz",
    ),
    *(
        b"HEAD / HTTP/1.0\r\n\r\n",
        b"Content-Length: 99999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"\xff\xfe",
        b"X: " + b"a" * 20_000,
    ),
    *(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x00\xa5\x01",
        b"GET /\xc3\xa9 HTTP/1.1\r\n\r\n",
        b"GET http://x/healthz HTTP/1.1\r\n\r\n",
    ),
)
WHOLES = st.lists(st.sampled_from(_ODD) | st.binary(max_size=20), max_size=8).map(b"".join) | st.just(_GOOD)


@contextmanager
def _opened(_servers: Servers) -> Iterator[Holds[Script]]:
    over = threading.Event()
    with listen("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        server = ProbeServer(listener, Probes(Readiness({})).answer)

        def serve() -> None:
            while not over.is_set():
                server.turn(0.02)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()

        def holds(script: Script) -> None:
            with socket.create_connection(address, timeout=HUNG) as odd:
                with suppress(OSError):
                    for piece in script.pieces:
                        odd.sendall(piece)
                if script.ending == "reset":
                    odd.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
                    odd.close()
                assert _asked(address).startswith(b"HTTP/1.1 200 OK\r\n")
                if script.ending == "close":
                    _check(odd, b"".join(script.pieces))
            assert thread.is_alive()

        try:
            yield holds
        finally:
            over.set()
            thread.join(HUNG)
            server.close()


def _check(odd: socket.socket, sent: bytes) -> None:
    """An answer of the closed set, or none for a request that never ends."""
    with suppress(OSError):
        odd.shutdown(socket.SHUT_WR)
        answer = odd.recv(65536)
        ends = b"\r\n\r\n" in sent or b"\n\n" in sent or len(sent) > MOST_REQUEST
        assert answer == b"" or (ends and answer.split(b" ")[1] in (b"200", b"400", b"404", b"431", b"503"))


def _asked(address: tuple[str, int]) -> bytes:
    with socket.create_connection(address, timeout=HUNG) as good:
        good.sendall(_GOOD)
        return good.recv(65536)


probe_requests = Target("probe-requests", scripts(WHOLES), _opened, lambda data: Script((data,)), (_GOOD,), cases=100)
