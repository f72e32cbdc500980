"""Transport to HTTP and SMTP receivers: addresses by the egress policy, verified TLS, bounded answers.

The one deadline is the caller's (`asyncio.timeout` around the whole attempt): with a server that drips a byte a second
no read ever times out. Only SinkRejected and SinkUnavailable are raised: a library's text would quote a URL.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import aiosmtplib
import httpcore
import httpx
from httpcore import AnyIOBackend, AsyncNetworkBackend, AsyncNetworkStream

from app.core import http
from app.core.errors import Fault, SinkRejected, SinkUnavailable
from app.notify.egress import EgressPolicy
from app.notify.sink import Answer, MailServer

if TYPE_CHECKING:
    from email.message import EmailMessage

    from pydantic import SecretStr

    from app.notify.settings import NotificationSettings

#: Bytes of a response's body that are kept; a hostile one has no end.
MOST_BODY = 64 * 1024
#: Connections of one thread to all receivers together, and those kept open between attempts.
MOST_CONNECTIONS, KEPT_CONNECTIONS = 16, 8
#: SMTP replies from here up are permanent.
_PERMANENT_REPLY = 500


def tls_context(settings: NotificationSettings) -> ssl.SSLContext:
    """Return a context that trusts the system's authorities and the operator's. Raises ValueError for a bad file."""
    context = http.tls_context()
    if settings.ca_bundle:
        try:
            context.load_verify_locations(cafile=settings.ca_bundle)
        except (OSError, ssl.SSLError):
            raise ValueError("SB_NOTIFICATION_CA_BUNDLE: no certificate could be read from it; accepted: PEM") from None
    return context


class _Backend(AsyncNetworkBackend):
    """Dials the very addresses that the egress policy has allowed: a second lookup could return another one."""

    def __init__(self, egress: EgressPolicy, *, cleartext: bool) -> None:
        self._egress = egress
        self._cleartext = cleartext
        self._inner = AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> AsyncNetworkStream:
        *others, last = await self._egress.resolve(host, port, cleartext=self._cleartext)
        for address in others:
            with suppress(httpcore.ConnectError):
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
        return await self._inner.connect_tcp(last, port, timeout, local_address, socket_options)

    async def connect_unix_socket(self, *_: Any, **__: Any) -> AsyncNetworkStream:
        raise SinkRejected(Fault.BLOCKED_ADDRESS)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _EgressTransport(httpx.AsyncHTTPTransport):
    """httpx's own transport over a pool that dials by the egress policy."""

    def __init__(self, context: ssl.SSLContext, egress: EgressPolicy, *, cleartext: bool) -> None:
        super().__init__(verify=context, trust_env=False)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=MOST_CONNECTIONS,
            max_keepalive_connections=KEPT_CONNECTIONS,
            keepalive_expiry=30,
            network_backend=_Backend(egress, cleartext=cleartext),
        )


class _Mailer(aiosmtplib.SMTP):
    """A client that aborts when it is closed: a TLS shutdown waits for the server, which may never answer."""

    def close(self) -> None:
        stream = self.transport
        super().close()
        if isinstance(stream, asyncio.WriteTransport):
            stream.abort()


class NetworkTransport:
    """The transport of one event loop, for one attempt at a time."""

    def __init__(self, settings: NotificationSettings, context: ssl.SSLContext | None = None) -> None:
        self._egress = EgressPolicy(settings.allowed_networks)
        self._context = context or tls_context(settings)
        self._client = self._connect()

    def _connect(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=_EgressTransport(self._context, self._egress, cleartext=False),
            mounts={"http://": _EgressTransport(self._context, self._egress, cleartext=True)},
            timeout=None,  # noqa: S113 - the attempt's deadline is the only clock
            follow_redirects=False,
            trust_env=False,
            headers=http.HEADERS,
        )

    @property
    def now(self) -> datetime:
        """The time, aware, UTC."""
        return datetime.now(UTC)

    async def close(self) -> None:
        """Close the connections that are kept open."""
        await self._client.aclose()

    async def post(self, url: SecretStr, body: bytes, headers: Mapping[str, str]) -> Answer:
        """POST once and return the answer, its body cut to MOST_BODY."""
        try:
            request = self._client.build_request("POST", url.get_secret_value(), content=body, headers=dict(headers))
            response = await self._client.send(request, stream=True)
            try:
                content = await http.read(response, MOST_BODY)
            finally:
                await response.aclose()
        except asyncio.CancelledError:
            # httpcore's pool never frees the place of a connection that was cancelled while it was made: after
            # MOST_CONNECTIONS of them nothing would be sent any more.
            cancelled, self._client = self._client, self._connect()
            await cancelled.aclose()
            raise
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
            local_hostname=http.AGENT,
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
            # The server has the message now, whatever it answers to QUIT.
            with suppress(aiosmtplib.SMTPException, OSError, TimeoutError):
                async with asyncio.timeout(1):
                    await client.quit()
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
        )
        try:
            await process.communicate(stdin)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0

    async def _dial(self, server: MailServer) -> socket.socket:
        error: OSError | None = None
        for address in await self._egress.resolve(server.host, server.port, cleartext=server.tls == "none"):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            connection = socket.socket(family, socket.SOCK_STREAM)
            connection.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(connection, (address, server.port))
            except OSError as problem:
                connection.close()
                error = problem
            except BaseException:
                connection.close()
                raise
            else:
                return connection
        raise SinkUnavailable(Fault.CONNECT) from error


class ThreadLoops:
    """Runs each attempt on the calling thread's own event loop, with its own NetworkTransport.

    A loop shared by all threads would hand every step of every attempt from one thread to another.
    """

    def __init__(self, settings: NotificationSettings) -> None:
        self._settings = settings
        self._context = tls_context(settings)
        self._local = threading.local()

    def __call__(self, attempt: Callable[[NetworkTransport], Coroutine[Any, Any, None]]) -> None:
        """Run one attempt to its end. It must have a deadline of its own."""
        if not hasattr(self._local, "runner"):
            self._local.runner = asyncio.Runner()
            self._local.transport = NetworkTransport(self._settings, self._context)
        self._local.runner.run(attempt(self._local.transport))

    def close(self) -> None:
        """Close the calling thread's transport and event loop."""
        if hasattr(self._local, "runner"):
            self._local.runner.run(self._local.transport.close())
            self._local.runner.close()


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
    if code >= _PERMANENT_REPLY:
        return SinkRejected(permanent, str(code))
    if code < 0:  # not a reply at all
        return SinkUnavailable(Fault.PROTOCOL)
    return SinkUnavailable(Fault.AUTH if permanent is Fault.AUTH else Fault.SERVER_ERROR, str(code))


def _unavailable(error: httpx.HTTPError) -> SinkUnavailable | SinkRejected:
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        return SinkRejected(Fault.TEMPLATE)
    return SinkUnavailable(http.fault(error))
