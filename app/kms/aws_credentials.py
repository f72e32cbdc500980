"""Where AWS credentials come from: environment, web identity (IRSA), container, instance; the first one configured.

The variables are AWS's own, documented at https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html.
They are read each time, because the files that they name are rotated under a running process. Shared profiles are not
read: a worker has no home directory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from app.core.errors import UnwrapFailed

if TYPE_CHECKING:
    from app.kms.transport import KeyServiceTransport, Reply

#: How long before they expire temporary credentials are renewed.
MARGIN = timedelta(minutes=5)
_CONTAINER, _INSTANCE = "http://169.254.170.2", "http://169.254.169.254"
#: Hosts that may serve a container's credentials without TLS: itself, the agents of ECS and EKS.
_CLEARTEXT_HOSTS = ("127.0.0.1", "::1", "localhost", "169.254.170.2", "169.254.170.23", "fd00:ec2::23")
_SOURCES = "environment, web identity, container, instance metadata"


@dataclass(frozen=True)
class Credentials:
    """An access key; temporary ones have a session token and expire."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)
    expires: datetime | None = None

    def fresh(self, now: datetime) -> bool:
        """Return whether they will not expire soon."""
        return self.expires is None or now + MARGIN < self.expires


async def find(environ: Mapping[str, str], region: str, transport: KeyServiceTransport) -> Credentials:
    """Return credentials from the first source that is configured. Raises UnwrapFailed, which names the source."""
    if environ.get("AWS_ACCESS_KEY_ID") or environ.get("AWS_SECRET_ACCESS_KEY"):
        return _from_environment(environ)
    if environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return await _from_web_identity(environ, region, transport)
    if environ.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") or environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        return await _from_container(environ, transport)
    if environ.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true":
        return await _from_instance(environ, transport)
    raise UnwrapFailed(f"aws credentials: none found; looked at: {_SOURCES}")


def _from_environment(environ: Mapping[str, str]) -> Credentials:
    access, secret = environ.get("AWS_ACCESS_KEY_ID", ""), environ.get("AWS_SECRET_ACCESS_KEY", "")
    if not access or not secret:
        raise UnwrapFailed("aws credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must both be set")
    return Credentials(access, secret, environ.get("AWS_SESSION_TOKEN", ""))


async def _from_web_identity(environ: Mapping[str, str], region: str, transport: KeyServiceTransport) -> Credentials:
    source = "aws web identity"
    role = environ.get("AWS_ROLE_ARN", "")
    if not role:
        raise UnwrapFailed(f"{source}: AWS_ROLE_ARN is not set")
    form = {
        "Action": "AssumeRoleWithWebIdentity",
        "Version": "2011-06-15",
        "RoleArn": role,
        "RoleSessionName": environ.get("AWS_ROLE_SESSION_NAME") or "secrets-bridge-worker",
        "WebIdentityToken": _read_token(environ["AWS_WEB_IDENTITY_TOKEN_FILE"], source),
    }
    url = environ.get("AWS_ENDPOINT_URL_STS") or f"https://sts.{region}.{suffix(region)}"
    headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
    reply = await transport.send(source, "POST", url.rstrip("/") + "/", headers, urlencode(form).encode())
    if reply.status != HTTPStatus.OK:
        raise UnwrapFailed(f"{source}: refused (HTTP {reply.status}); check AWS_ROLE_ARN and its trust policy")
    # STS answers in XML; each of these four names occurs in it once.
    names = ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration")
    text = reply.text()
    values = {name: match[1] for name in names if (match := re.search(rf"<{name}>\s*([^<\s]+)\s*</{name}>", text))}
    return _temporary(values, source, token="SessionToken")  # noqa: S106 - a name


async def _from_container(environ: Mapping[str, str], transport: KeyServiceTransport) -> Credentials:
    source = "aws container credentials"
    relative = environ.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "")
    url = _CONTAINER + relative if relative else environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"]
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in _CLEARTEXT_HOSTS:
        raise UnwrapFailed(
            f"{source}: AWS_CONTAINER_CREDENTIALS_FULL_URI must be https://, or the container's own agent"
        )
    token = environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN", "")
    if environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"):
        token = _read_token(environ["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"], source)
    reply = await transport.send(source, "GET", url, {"Authorization": token} if token else {}, credentials=True)
    return _temporary(_json(reply, source), source)


async def _from_instance(environ: Mapping[str, str], transport: KeyServiceTransport) -> Credentials:
    """Ask the instance's metadata service, version 2: a session first, then the role's name, then its credentials."""
    source = "aws instance metadata"
    base = (environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or _INSTANCE).rstrip("/") + "/latest"
    try:
        lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "300"}
        session = await transport.send(source, "PUT", f"{base}/api/token", lifetime, credentials=True)
    except UnwrapFailed:
        raise UnwrapFailed(f"aws credentials: none found; looked at: {_SOURCES}") from None
    if session.status != HTTPStatus.OK:
        raise UnwrapFailed(f"{source}: no session (HTTP {session.status}); is its hop limit too low for a container?")
    headers = {"X-aws-ec2-metadata-token": session.text().strip()}
    path = f"{base}/meta-data/iam/security-credentials/"
    roles = await transport.send(source, "GET", path, headers, credentials=True)
    role = roles.text().partition("\n")[0].strip()
    if roles.status != HTTPStatus.OK or not re.fullmatch(r"[\w+=,.@-]{1,128}", role):
        raise UnwrapFailed(f"{source}: the instance has no role (HTTP {roles.status})")
    reply = await transport.send(source, "GET", path + role, headers, credentials=True)
    return _temporary(_json(reply, source), source)


def suffix(region: str) -> str:
    """Return the domain of a region's endpoints."""
    return "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"


def _json(reply: Reply, source: str) -> Mapping[str, str]:
    if reply.status != HTTPStatus.OK:
        raise UnwrapFailed(f"{source}: refused (HTTP {reply.status})")
    return {name: value for name, value in reply.content().items() if isinstance(value, str)}


def _temporary(values: Mapping[str, str], source: str, *, token: str = "Token") -> Credentials:  # noqa: S107 - a key
    try:
        expires = datetime.fromisoformat(values["Expiration"]).astimezone(UTC) if "Expiration" in values else None
        return Credentials(values["AccessKeyId"], values["SecretAccessKey"], values.get(token, ""), expires)
    except (KeyError, ValueError, OverflowError):  # the last one for a time that is none in UTC
        raise UnwrapFailed(f"{source}: the answer has no credentials") from None


def _read_token(path: str, source: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise UnwrapFailed(f"{source}: its token file cannot be read") from None
