"""Transport to HTTP and SMTP receivers: addresses by the egress policy, verified TLS, bounded answers.

The one deadline is the caller's (`asyncio.timeout` around the whole attempt): with a server that drips a byte a second
no read ever times out. Only SinkRejected and SinkUnavailable are raised: a library's text would quote a URL.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import aiosmtplib
import httpx

from app.core import http
from app.core.bounded_input import copied
from app.core.dialling import DiallingTransport, dial
from app.core.errors import AddressBlocked, Fault, SinkRejected, SinkUnavailable
from app.core.lookup import NameUnknown
from app.notify.egress import OPEN, EgressPolicy
from app.notify.sink import Answer, MailServer

if TYPE_CHECKING:
    from email.message import EmailMessage

    from pydantic import SecretStr

    from app.notify.settings import NotificationSettings

#: Bytes of a response's body that are kept; a hostile one has no end.
MOST_BODY = 64 * 1024
#: Connections of one thread that are kept open between attempts, and for how long.
KEPT_CONNECTIONS, KEPT_SECONDS = 8, 30.0
#: Seconds that the body of an answer is waited for once its status is there, which says enough.
_BODY_PATIENCE = 2.0
#: Variables that a child gets: what Python needs to start, where certificates are, which networks are allowed, and the
#: proxy. No other: the environment holds every secret of this process.
CHILDS_VARIABLES = (
    *("PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ"),
    *("TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("SB_NOTIFICATION_ALLOWED_NETWORKS", "SB_EGRESS_PROXY_URL", "SB_EGRESS_PROXY_URL_FILE", "SB_EGRESS_NO_PROXY"),
)
#: SMTP replies from here up are permanent, and from there up none.
_PERMANENT_REPLY, _NO_REPLY = 500, 600


def tls_context(settings: NotificationSettings) -> ssl.SSLContext:
    """Return a context that trusts the system's authorities and the operator's. Raises ValueError for a bad file."""
    context = http.tls_context()
    if settings.ca_bundle:
        try:
            with copied(settings.ca_bundle) as path:
                context.load_verify_locations(cafile=path)
        except (OSError, ssl.SSLError):
            raise ValueError("SB_NOTIFICATION_CA_BUNDLE: no certificate could be read from it; accepted: PEM") from None
    return context


class _Mailer(aiosmtplib.SMTP):
    """A client that aborts when it is closed: a TLS shutdown waits for the server, which may never answer."""

    def close(self) -> None:
        stream = self.transport
        super().close()
        if isinstance(stream, asyncio.WriteTransport):
            stream.abort()


class NetworkTransport:
    """The transport of one event loop, for attempts side by side."""

    def __init__(self, settings: NotificationSettings, context: ssl.SSLContext | None = None) -> None:
        self._egress = EgressPolicy(settings.allowed_networks)
        self._context = context or tls_context(settings)
        #: By whether they may lead to private receivers: a connection that may must never serve one that may not.
        self._clients = {private: self._connect(private=private) for private in (False, True)}

    def _connect(self, *, private: bool) -> http.Client:
        egress = OPEN if private else self._egress
        secure, clear = (
            DiallingTransport(
                self._context,
                partial(egress.resolve, cleartext=cleartext),
                kept=KEPT_CONNECTIONS,
                seconds=KEPT_SECONDS,
            )
            for cleartext in (False, True)
        )
        return http.Client(secure, mounts={"http://": clear})

    @property
    def now(self) -> datetime:
        """The time, aware, UTC."""
        return datetime.now(UTC)

    async def close(self) -> None:
        """Close the connections that are kept open."""
        for client in self._clients.values():
            await client.aclose()

    async def post(self, url: SecretStr, body: bytes, headers: Mapping[str, str], *, private: bool = False) -> Answer:
        """POST once and return the answer; of its body what comes in time, at most MOST_BODY."""
        return await self._exchange("POST", url, body, headers, private=private)

    async def get(self, url: SecretStr) -> Answer:
        """GET once and return the answer, as `post` does."""
        return await self._exchange("GET", url, None, {}, private=False)

    async def _exchange(
        self, method: str, url: SecretStr, body: bytes | None, headers: Mapping[str, str], *, private: bool
    ) -> Answer:
        client = self._clients[private]
        try:
            request = client.build_request(method, url.get_secret_value(), content=body, headers=dict(headers))
            response = await client.send(request)
            try:
                content = await http.read(response, MOST_BODY, patience=_BODY_PATIENCE)
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise _unavailable(error) from None
        except (httpx.InvalidURL, UnicodeError):
            raise SinkRejected(Fault.TEMPLATE) from None
        lower = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status_code, lower, bytes(content[:MOST_BODY]))

    async def mail(self, server: MailServer, message: EmailMessage, recipient: str) -> None:
        """Hand over one message for one recipient: connect, TLS, login, MAIL, RCPT, DATA, in one conversation."""
        connection = await self._dial(server)
        client = _Mailer(
            hostname=server.host,
            sock=connection,
            use_tls=server.tls == "implicit",
            start_tls=False,
            tls_context=self._context,
            local_hostname=server.greeting,
            timeout=None,
        )
        try:
            try:
                await client.connect()
                if server.tls == "starttls":
                    await _start_tls(client, server)
                if server.username:
                    await _login(client, server)
                await client.sendmail(server.sender, [recipient], message.as_bytes())
            except ssl.SSLError:
                raise SinkUnavailable(Fault.TLS) from None
            except (aiosmtplib.SMTPException, OSError) as error:
                raise _mail_error(error) from None
            # The server has the message now. Who waited for its answer to QUIT could still run into the deadline.
            if isinstance(client.transport, asyncio.WriteTransport):
                client.transport.write(b"QUIT\r\n")
        finally:
            client.close()
            # The event loop closes the socket in its next turns, and may have none before the next attempt.
            for _ in range(2):
                await asyncio.sleep(0)
            connection.close()

    async def child(self, module: str, stdin: bytes) -> int:
        """Run a module in a process of its own, which ends with the attempt; return its exit status."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={name: os.environ[name] for name in CHILDS_VARIABLES if name in os.environ},
        )
        try:
            await process.communicate(stdin)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0

    async def _dial(self, server: MailServer) -> socket.socket:
        try:
            addresses = await self._egress.resolve(server.host, server.port, cleartext=server.tls == "none")
            return await dial(addresses, server.port)
        except NameUnknown:
            raise SinkUnavailable(Fault.DNS) from None
        except AddressBlocked:
            raise SinkRejected(Fault.BLOCKED_ADDRESS) from None
        except OSError as error:
            raise SinkUnavailable(Fault.CONNECT) from error


class ThreadLoops:
    """Runs the attempts of a batch on the calling thread's own event loop, with its own NetworkTransport.

    A loop shared by all threads would hand every step of every attempt from one thread to another.
    """

    def __init__(self, settings: NotificationSettings) -> None:
        self._settings = settings
        self._context = tls_context(settings)
        self._local = threading.local()

    def __call__(self, attempts: Callable[[NetworkTransport], Coroutine[Any, Any, None]]) -> None:
        """Run attempts to their end. Each must have a deadline of its own."""
        if not hasattr(self._local, "loop"):
            self._local.loop = asyncio.new_event_loop()
            self._local.transport = NetworkTransport(self._settings, self._context)
        self._local.loop.run_until_complete(attempts(self._local.transport))

    def close(self) -> None:
        """Close the calling thread's transport and event loop, whatever is left behind on it."""
        if hasattr(self._local, "loop"):
            with suppress(TimeoutError):
                self._local.loop.run_until_complete(asyncio.wait_for(self._local.transport.close(), 1))
            self._local.loop.close()


async def _start_tls(client: aiosmtplib.SMTP, server: MailServer) -> None:
    """Upgrade to TLS. Raises SinkRejected when that is not offered: the mail is not sent in the clear instead."""
    await client.ehlo()
    if not client.supports_extension("starttls"):
        raise SinkRejected(Fault.TLS, "starttls")
    await client.starttls(server_hostname=server.host)


async def _login(client: aiosmtplib.SMTP, server: MailServer) -> None:
    await client.ehlo()
    if not client.supported_auth_methods:
        raise SinkRejected(Fault.AUTH, "not_offered")
    await client.login(server.username, server.password.get_secret_value() if server.password else "")


def _mail_error(error: Exception) -> SinkUnavailable | SinkRejected:
    """Return what an SMTP conversation that failed means, by its reply: 4yz is transient, 5yz permanent."""
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused) and error.recipients:
        return _reply(error.recipients[0].code, Fault.REFUSED_RECIPIENTS)
    if isinstance(error, aiosmtplib.SMTPAuthenticationError):
        refused = _reply(error.code, Fault.AUTH)
        return SinkRejected(Fault.AUTH, refused.code, off=True) if isinstance(refused, SinkRejected) else refused
    if isinstance(error, aiosmtplib.SMTPResponseException):
        permanent = Fault.PROTOCOL if error.code < 0 else Fault.CLIENT_ERROR
        return _reply(error.code, permanent)
    if isinstance(error, OSError):
        return SinkUnavailable(Fault.TLS if http.caused_by(error, ssl.SSLError) else Fault.CONNECT)
    return SinkUnavailable(Fault.PROTOCOL)


def _reply(code: int, permanent: Fault) -> SinkUnavailable | SinkRejected:
    if _PERMANENT_REPLY <= code < _NO_REPLY:
        return SinkRejected(permanent, str(code))
    if not 0 <= code < _NO_REPLY:  # not a reply at all
        return SinkUnavailable(Fault.PROTOCOL)
    return SinkUnavailable(Fault.AUTH if permanent is Fault.AUTH else Fault.SERVER_ERROR, str(code))


def _unavailable(error: httpx.HTTPError) -> SinkUnavailable | SinkRejected:
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        return SinkRejected(Fault.TEMPLATE)
    fault = http.fault(error)
    return SinkRejected(fault) if fault is Fault.BLOCKED_ADDRESS else SinkUnavailable(fault, http.proxy_status(error))
