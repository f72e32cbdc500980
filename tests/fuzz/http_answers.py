"""Answers over HTTP, good ones and others, as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import strategies as st


class Said(NamedTuple):
    """An answer as somebody means it."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    #: length, chunked, or end: what tells where the body ends.
    framing: str
    #: Sizes of chunks; how the lines end.
    sizes: Sequence[int] = ()
    newline: bytes = b"\r\n"

    @property
    def raw(self) -> bytes:
        """All of it as it is sent."""
        line = self.newline
        headers = [b"%s: %s" % header for header in self.headers]
        body = self.body
        if self.framing == "length":
            headers.append(b"Content-Length: %d" % len(body))
        elif self.framing == "chunked":
            headers.append(b"Transfer-Encoding: chunked")
            body = self._chunked()
        return line.join([b"HTTP/1.1 %d X" % self.status, *headers, b"", b""]) + body

    def _chunked(self) -> bytes:
        rest, chunks = self.body, b""
        for size in [*self.sizes, len(self.body)]:
            piece, rest = rest[:size], rest[size:]
            if piece:
                chunks += b"%x\r\n%s\r\n" % (len(piece), piece)
        return chunks + b"0\r\n\r\n"


_NAMES = st.sampled_from(
    [b"X-A", b"Retry-After", b"Location", b"Content-Type", b"Date", b"X-Amzn-ErrorType", b"Set-Cookie"]
)
_VALUES = st.sampled_from(
    [b"", b"0", b"-1", b"7", b"1e9", b"Wed, 21 Oct 2026 07:28:00 GMT", b"Wed, 99 Oct 0000 99:99:99 -9999", b"\xe4\xff",
     b"application/json", b"text/html", b"http://127.0.0.1:1/", b"//", b"http://[", b"x" * 3000]
)  # fmt: skip
STATUSES = st.sampled_from(
    [200, 200, 201, 204, 301, 304, 307, 400, 401, 403, 404, 408, 410, 412, 413, 429, 500, 502, 503, 599, 600, 999]
)


def answers(bodies: st.SearchStrategy[bytes]) -> st.SearchStrategy[Said]:
    """Return answers that mean what they say, with these bodies."""
    return st.builds(
        Said,
        STATUSES,
        st.lists(st.tuples(_NAMES, _VALUES), max_size=3),
        bodies,
        st.sampled_from(["length", "chunked", "end"]),
        st.lists(st.integers(0, 50), max_size=5),
        st.sampled_from([b"\r\n", b"\n"]),
    )


#: What no server should say, whole or put into what one should.
ODD = (
    *(
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 099 X\r\n\r\n",
    ),
    *(
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"\x00",
        b"\r\n",
        b"\n",
    ),
    *(
        b"Content-Length: 5\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Content-Length: 1, 2\r\n",
    ),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding: x\r\n"),
    *(
        b"Content-Encoding: gzip\r\n",
        b"Connection: close\r\n",
        b"Connection: upgrade\r\n",
        b": x\r\n",
        b"A\r\n",
        b" folded\r\n",
    ),
    *(
        b"ffffffffffffffff\r\n",
        b"0\r\n\r\n",
        b"-1\r\n",
        b"1;" + b"e" * 300 + b"\r\n",
        b"a" * 5000,
        b"X: " + b"b" * 70_000,
    ),
)

#: Bytes of one piece again and again, at most.
_MOST_FLOOD = 200_000


def _put(whole: bytes, at: int, odd: bytes, gone: int) -> bytes:
    at = at % (len(whole) + 1)
    return whole[:at] + odd + whole[at + gone :]


def wholes(bodies: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Return what a server may send, from a good answer down to nonsense."""
    odd = st.sampled_from(ODD) | st.binary(max_size=30)
    good = answers(bodies).map(lambda said: said.raw)
    spoiled = st.builds(_put, good, st.integers(0, 400), odd, st.integers(0, 20))
    floods = st.builds(
        lambda piece, n: piece * min(n, _MOST_FLOOD // len(piece)), odd.filter(len), st.integers(1, 3000)
    )
    return good | spoiled | st.lists(odd, max_size=8).map(b"".join) | floods
