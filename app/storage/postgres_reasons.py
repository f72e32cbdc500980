"""Why there is no connection to PostgreSQL, in words of ours.

libpq has the reason in a text only, which also names hosts, users and databases, and such a name may be any word. So a
text is taken apart first: each of its failures begins with where libpq dialled, then either the server speaks, after
its word for how grave it is, or libpq does. What speaks is matched from its first word on, and never shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import psycopg

from app.core.errors import describe

_PLACE = r'connection to server (?:at "[^"\n]*"(?: \([^)\n]*\))?, port \d+|on socket "[^"\n]*") failed: '
_HEAD = re.compile(r"\Aconnection (?:failed|is bad): ")
_FAILURES = re.compile(rf"(?:\A|(?<=\n)){_PLACE}")
_ATTEMPT = re.compile(r"\n- host: (?:'[^'\n]*'|None), port: (?:'[^'\n]*'|None), hostaddr: (?:'[^'\n]*'|None): ")
# In any language: two blanks follow it.
_SERVER = re.compile(r'[^\s:"]+:  ')
_NAME = r'"(?:[^"]|"")*"'

_SAID_BY_THE_SERVER = {
    "the server lets this client in by TLS only; set sslmode=require, or a stricter one": (
        r"no pg_hba\.conf entry for .*(?:no encryption|SSL off)\Z",
        r"(?:SSL|TLS) required",
    ),
    "the server's pg_hba.conf does not let this client in": (
        r"no pg_hba\.conf entry for ",
        r"pg_hba\.conf rejects connection",
    ),
    "the server wants a client's certificate; set sslcert and sslkey": (
        r"connection requires a valid client certificate",
        r"certificate authentication failed",
    ),
    "the user or the password is wrong": (
        r"(?:[\w()-]+ ){1,3}authentication failed",
        r"auth failed",
        r"no such user",
        r"invalid password",
    ),
    "the database does not exist": (rf"database {_NAME} does not exist", r"no such database"),
    "the role does not exist": (rf"role {_NAME} does not exist",),
    "the role may not log in; it needs LOGIN": (rf"role {_NAME} is not permitted to log in",),
    "the role may not connect to this database; it needs CONNECT on it": (r"permission denied for database ",),
    "the server or pooler has no connection left": (
        r"sorry, too many clients",
        r"remaining connection slots",
        r"too many connections",
        r"no more connections allowed",
        r"query_wait_timeout",
    ),
    "the server is starting up": (r"the database system is (?:starting up|in recovery mode)",),
    "the server is shutting down": (r"the database system is shutting down", r"terminating connection due to admin"),
    "the server takes no connections now": (
        r"the database system is not (?:yet )?accepting connections",
        rf"database {_NAME} is not currently accepting connections",
    ),
    "the server or pooler refuses a setting that the URL carries": (
        r"unsupported startup parameter",
        r"unrecognized configuration parameter",
        r"invalid value for parameter",
        r"invalid command-line argument",
        r"parameter .* cannot be ",
        r"permission denied to set parameter",
    ),
    "the pooler does not know this database, or is not set up": (r"bouncer config error",),
    "the pooler cannot log in to the server behind it": (
        r"server login (?:failed|has been failing)",
        r"pgbouncer cannot connect to server",
        r"server_login_retry",
    ),
}
_REFUSED = "the server refuses, for a reason that is in its log"
NOT_TRUSTED = "the server's certificate is not of an authority in sslrootcert, nor else of this system"
_SAID_BY_LIBPQ = {
    "no answer in time; connect_timeout in the URL allows more": (
        r"(?:connection )?timeout expired",
        r"Connection timed out",
    ),
    "the connection is refused": (r"Connection refused",),
    "there is no server at that socket": (r"No such file or directory",),
    "this process may not use that socket": (r"Permission denied",),
    "there is no way to the server's network": (r"No route to host", r"Network is unreachable"),
    "the host name is not known": (r"could not translate host name", r"failed to resolve host"),
    "the server, or what is before it, closes the connection at once": (
        r"server closed the connection",
        r"could not receive data",
        r"could not send ",
    ),
    "the server does not speak TLS, which sslmode asks for": (r"server does not support SSL",),
    "the server's certificate is for another name than the URL's, which sslmode=verify-full compares": (
        r"server certificate for ",
        r"could not get server's host name",
    ),
    NOT_TRUSTED: (r"(?:SSL error: )?certificate verify failed",),
    "the server wants a client's certificate, or refuses that of sslcert": (
        r"SSL error: .*alert .*(?:cert|unknown ca)",
    ),
    "sslcert, sslkey or sslrootcert names a file that cannot be used": (
        r"could not (?:load|read|open|get) .*(?:certificate|private key)",
        r"(?:private key|root certificate|certificate) (?:file|present)",
    ),
    "there is no TLS handshake; is that the port of PostgreSQL, and its sslnegotiation?": (
        r"SSL error",
        r"SSL SYSCALL error",
        r"direct SSL",
    ),
    "what listens there is not PostgreSQL": (
        r"received invalid response to (?:SSL|GSSAPI) ",
        r"expected authentication request from server",
        r"invalid response",
    ),
    "a password is needed": (r"fe_sendauth: no password supplied",),
    "the server asks for another way to log in than require_auth allows": (r"authentication method requirement",),
    "channel_binding=require needs TLS, and a server that logs in by SCRAM": (r"channel binding ",),
    "no server is what target_session_attrs asks for": (r"session is ", r"server is (?:not )?in hot standby"),
    "the versions of the protocol do not meet; see min_protocol_version": (
        r"server only supports protocol",
        r"protocol",
    ),
    "a service file cannot be used": (r"(?:definition of )?service", r"syntax error in service file"),
}


def reason(error: psycopg.Error) -> str:
    """Return why there is no connection: each reason once, where several addresses were tried."""
    last, *attempts = _ATTEMPT.split(str(error))
    failures = [failure for text in attempts or [last] for failure in _FAILURES.split(_HEAD.sub("", text))]
    reasons = [_reason(failure.strip()) for failure in failures]
    return "; ".join(dict.fromkeys(filter(None, reasons))) or describe(error).error


def _reason(text: str) -> str | None:
    if (grave := _SERVER.match(text)) is None:
        return _first(_SAID_BY_LIBPQ, text)
    return _first(_SAID_BY_THE_SERVER, text[grave.end() :]) or _REFUSED


def _first(reasons: Mapping[str, Sequence[str]], text: str) -> str | None:
    """Return the reason of the first pattern with which a text begins."""
    return next(
        (reason for reason, patterns in reasons.items() if any(re.match(one, text, re.DOTALL) for one in patterns)),
        None,
    )
