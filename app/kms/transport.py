"""HTTP to a key service: each request under a deadline, answers bounded, neither of them in a log or an error.

What failed in passing is sent again, as both of the Go worker's clients do; a service that stays away is not waited for
twice in a run.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import random
import ssl
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, NamedTuple

import httpx

from app.core import backoff, bounded_input, egress, http
from app.core.backoff import retry_after
from app.core.dialling import DiallingTransport
from app.core.errors import Fault, UnwrapFailed
from app.kms.buffers import wipe

#: Seconds that one request may take, bytes of an answer that are read at most, and values in it.
DEADLINE, MOST_BODY, MOST_VALUES = 10.0, 64 * 1024, 5000
#: How many requests' time opening a token may take in all: one that waits for credentials as well takes several.
MOST_DEADLINES = 3
#: Seconds before a request is sent again; doubled with each further failure.
FIRST_WAIT = 1.0
#: Where AWS serves credentials, to instances, to tasks and to pods. Nothing else here may dial these.
CREDENTIALS = frozenset(
    map(ip_address, ("169.254.169.254", "fd00:ec2::254", "169.254.170.2", "169.254.170.23", "fd00:ec2::23"))
)
#: Why there was no answer, where the next request may get one. A time-out has had its time.
_PASSING = frozenset({Fault.CONNECT, Fault.DNS, Fault.PROTOCOL})


class Request(NamedTuple):
    """What to send, and how."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes = b""
    #: Whether it asks for credentials: only then may it go to the addresses in CREDENTIALS.
    credentials: bool = False
    #: The name that the server's certificate must have; empty for the URL's host.
    server_name: str = ""
    #: A Unix socket that is connected to, whatever host the URL names.
    socket: str = ""
    #: Seconds that it may take; None for the transport's deadline.
    seconds: float | None = None


class Reply(NamedTuple):
    """An answer. The body of a success may hold a key: reading it wipes it."""

    status: int
    headers: Mapping[str, str]
    body: bytearray

    def content(self) -> Mapping[str, Any]:
        """Return the body as a JSON object, empty when it is none."""
        try:
            parsed = bounded_input.parse(self.body, most=MOST_VALUES)
        except ValueError:
            return {}
        finally:
            self._wipe()
        return parsed if isinstance(parsed, dict) else {}

    def text(self) -> str:
        """Return the body as text."""
        try:
            return self.body.decode("utf-8", "replace")
        finally:
            self._wipe()

    def _wipe(self) -> None:
        if self.status == HTTPStatus.OK:
            wipe(self.body)


class NoAnswer(UnwrapFailed):
    """A service gave no answer."""

    def __init__(self, service: str, fault: Fault, *, before: bool = False) -> None:
        """`before` is whether it was found earlier in this run, and not asked now."""
        super().__init__(
            f"{service} cannot be reached" + (", as found before in this run" if before else f" ({fault})")
        )
        self.fault = fault


class Retry(Enum):
    """Whether a request is sent again after its answer."""

    NO = auto()
    #: The service failed: as often as the policy says.
    FAILED = auto()
    #: The service wants us to wait: as often as there is time for.
    WAIT = auto()


class Policy(NamedTuple):
    """When a request is sent again: at most `retries` times for failures, and never if that is 0."""

    retries: int
    judge: Callable[[Reply], Retry]


#: Requests that are sent once.
ONCE = Policy(0, lambda _: Retry.NO)


def plaintext(service: str, text: object) -> bytearray:
    """Return the bytes of a plaintext that a service answered with, in base64. Raises UnwrapFailed when it is none."""
    try:
        plain = bytearray(base64.b64decode(text, validate=True)) if isinstance(text, str) else bytearray()
    except (binascii.Error, ValueError):
        plain = bytearray()
    if not plain:
        raise UnwrapFailed(f"{service}: the answer has no plaintext")
    return plain


class KeyServiceTransport:
    """HTTP for key services, for one event loop. No redirects, no cookies, and for credentials no proxy."""

    def __init__(
        self, context: ssl.SSLContext | None = None, *, deadline: float = DEADLINE, first_wait: float = FIRST_WAIT
    ) -> None:
        """`deadline` is one request's, `first_wait` what is waited before it is sent again; seconds."""
        self.deadline = deadline
        self._first_wait = timedelta(seconds=first_wait)
        self.whole = deadline * MOST_DEADLINES
        self._context = context
        #: By whether it is for credentials, and by socket: one connection must never serve both.
        self._clients: dict[tuple[bool, str], http.Client] = {}
        #: Held while a key manager logs in, so that the others that wait use its login.
        self.login = asyncio.Lock()
        #: Services that gave no answer: a hundred endpoints must not each wait for the same one.
        self._unreachable: dict[str, Fault] = {}
        #: Services that failed to the last try, for which nobody else waits either until they answer.
        self._failing: set[str] = set()

    async def send(self, service: str, make: Callable[[], Request], policy: Policy = ONCE) -> Reply:
        """Return the answer, whatever its status, to a request that is made and sent anew as the policy says.

        `service` names the service in errors. One that could not be reached is not tried again by this transport,
        which lives as long as a run. The last try begins within one deadline of the first. Raises NoAnswer.
        """
        if service in self._unreachable:
            raise NoAnswer(service, self._unreachable[service], before=True)
        clock = asyncio.get_running_loop().time
        until, tries = clock() + self.deadline, 0
        while True:
            tries += 1
            answer = await self._try(service, make())
            retry, wait = _judge(answer, policy), self._wait(answer, tries)
            spent = retry is Retry.FAILED and tries > policy.retries
            if retry is Retry.NO or spent or service in self._failing or clock() + wait > until:
                break
            await asyncio.sleep(wait)
        if retry is Retry.NO:
            self._failing.discard(service)
        else:
            self._failing.add(service)
        if isinstance(answer, NoAnswer):
            if answer.fault is not Fault.PROTOCOL:  # which a single broken connection may cause
                self._unreachable[service] = answer.fault
            raise answer
        return answer

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.aclose()

    async def _try(self, service: str, request: Request) -> Reply | NoAnswer:
        """Send once. Raises UnwrapFailed for what cannot be sent."""
        try:
            async with asyncio.timeout(self.deadline if request.seconds is None else request.seconds):
                return await self._exchange(request)
        except asyncio.CancelledError:  # the time for the whole token is over: nobody else is to spend it here
            self._unreachable[service] = Fault.TIMEOUT
            raise
        except (OSError, httpx.HTTPError) as error:  # OSError: a time-out, and TLS that ends after its handshake
            return NoAnswer(service, http.fault(error))
        except Exception:  # noqa: BLE001 - an address or a header that no request can be made of, in any class
            raise UnwrapFailed(f"{service}: the request cannot be built; check its address and credentials") from None

    async def _exchange(self, request: Request) -> Reply:
        client = self._client(request)
        extensions = {"sni_hostname": request.server_name} if request.server_name else None
        response = await client.send(
            client.build_request(
                request.method, request.url, content=request.body, headers=dict(request.headers), extensions=extensions
            )
        )
        try:
            return Reply(response.status_code, response.headers, await http.read(response, MOST_BODY))
        finally:
            await response.aclose()

    def _wait(self, answer: Reply | NoAnswer, tries: int) -> float:
        """Return how many seconds to wait before the next try: the doubled wait, or what the service asks for."""
        asked = None if isinstance(answer, NoAnswer) else retry_after(answer.headers.get("Retry-After", ""), _now())
        wait = backoff.exponential(
            self._first_wait, 1 if asked is not None else tries, timedelta(seconds=self.deadline)
        )
        return max(asked or 0.0, backoff.jittered(wait, random.random()) / timedelta(seconds=1))  # noqa: S311 - no secret

    def _client(self, request: Request) -> http.Client:
        key = (request.credentials, request.socket)
        if key not in self._clients:
            resolve = partial(egress.resolve, besides=CREDENTIALS if request.credentials else ())
            self._context = self._context or http.tls_context()
            transport = DiallingTransport(
                self._context, resolve, proxied=not request.credentials, unix_socket=request.socket
            )
            self._clients[key] = http.Client(transport)
        return self._clients[key]


def _judge(answer: Reply | NoAnswer, policy: Policy) -> Retry:
    if policy.retries == 0:
        return Retry.NO
    if isinstance(answer, NoAnswer):
        return Retry.FAILED if answer.fault in _PASSING else Retry.NO
    return policy.judge(answer)


def _now() -> datetime:
    return datetime.now(UTC)
