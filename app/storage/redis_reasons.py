"""Why Redis cannot be used, in words of ours: a server's or library's own text may quote a name or an address."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator

import redis
from redis.exceptions import InvalidResponse

from app.core.errors import describe
from app.storage.certificates import OTHER_NAME, OUT_OF_DATE

# What a server says that has been demoted (to who waits there: UNBLOCKED), is not up yet or has lost its own master,
# and one that has forgotten our login. A connection to it may live on for hours, so dialling anew helps, where a name
# leads to another server by then.
LEAVE = frozenset(["READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "MOVED", "NOAUTH", "WRONGPASS", "UNBLOCKED"])
# What dialling does not help against.
_STAY = frozenset(["OOM", "MISCONF", "NOREPLICAS", "NOPERM", "CROSSSLOT", "BUSY", "NOSCRIPT", "EXECABORT", "DENIED"])
#: What a server says that takes no commands of this kind now, from anybody or from us.
REFUSES = LEAVE | _STAY
# Before Redis 7 an error inside of a script comes wrapped in a text of the script's own.
_CODE = re.compile(rf"(?:\A|-)({'|'.join(sorted(REFUSES))})\b")
_BY_WORD = {
    "NOAUTH": "a password is needed; put it into the URL",
    "WRONGPASS": "the user or the password is wrong",
    "NOPERM": "the user of the URL lacks rights; `sb-worker check` shows the ACL that suffices",
    "READONLY": "a replica, which takes no writes; the URL must lead to the master",
    "LOADING": "the server is starting up",
    "MASTERDOWN": "a replica without its master; the URL must lead to a master",
    "CLUSTERDOWN": "the cluster that the server belongs to is down",
    "DENIED": "the server is in protected mode, which lets in clients of its own machine only",
}
_BY_TEXT = {
    r"(?:ERR )?(?:invalid DB index|DB index is out of range)": "the server has no database of the number in the URL",
    r"(?:ERR )?SELECT is not allowed in cluster mode": "a cluster has database 0 alone, and the URL has another number",
    r"(?:ERR )?max number of clients": "the server has no connection left",
    r"(?:ERR )?(?:AUTH <password> called without|Client sent AUTH, but no password)": (
        "the URL has a password, and the server none"
    ),
    r"(?:ERR )?(?:invalid password|invalid username-password)": "the user or the password is wrong",
}
_CLOSED = "the connection is closed, or what listens there is not Redis; a port with TLS needs rediss://"
_NO_TLS = "there is no TLS handshake; is that a port with TLS? redis:// is without"
# The first that fits counts.
_BY_CLASS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (ssl.SSLError, _NO_TLS),
    (socket.gaierror, "the host name is not known"),
    (ConnectionRefusedError, "the connection is refused"),
    (FileNotFoundError, "there is no server at that socket"),
    (PermissionError, "this process may not use that socket"),
    ((TimeoutError, redis.TimeoutError), "no answer in time"),
    ((ConnectionResetError, BrokenPipeError, InvalidResponse), _CLOSED),
    (OSError, "there is no way to the server's network"),
)


def reason(error: redis.RedisError) -> str:
    """Return the server's word for what is wrong, such as READONLY, or else the name of the error's class."""
    code = getattr(error, "status_code", None)
    if code in REFUSES:
        return str(code)
    text = str(error)
    if "user executing the script" in text or "ACL failure in script" in text:
        return "NOPERM"
    match = _CODE.search(text)
    return match[1] if match else describe(error).error


def explain(error: redis.RedisError) -> str:
    """Return what failed, and what to do about it."""
    for cause in _chain(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _certificate(cause)
        if "handshake operation timed out" in str(cause):  # as of a server without TLS, which waits for more
            return _NO_TLS
        if text := next((text for kind, text in _BY_CLASS if isinstance(cause, kind)), None) or _of_server(cause):
            return text
    return _CLOSED if isinstance(error, redis.ConnectionError) else f"the server refuses us ({reason(error)})"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield what an error came from, the first cause first, and the error last."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    yield from reversed(chain)


def _certificate(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in OTHER_NAME:
        return "the server's certificate is for another name than the URL's"
    if error.verify_code in OUT_OF_DATE:
        return "the server's certificate has expired, or is not valid yet"
    return "the server's certificate is not of an authority of this system; SSL_CERT_FILE names others"


def _of_server(error: BaseException) -> str | None:
    if isinstance(error, redis.RedisError) and (known := _BY_WORD.get(reason(error))):
        return known
    return next((text for pattern, text in _BY_TEXT.items() if re.match(pattern, str(error), re.IGNORECASE)), None)
