"""Credentials that AWS serves beside a program: a container's agent (ECS, EKS), an instance's metadata service."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING

from app.core.bounded_input import content
from app.core.errors import Fault, UnwrapFailed
from app.kms.aws_sigv4 import Credentials
from app.kms.aws_sources import NONE_FOUND
from app.kms.transport import NoAnswer, Request

if TYPE_CHECKING:
    from app.kms.aws_config import AwsConfig
    from app.kms.aws_sources import Container, Instance
    from app.kms.transport import KeyServiceTransport, Policy, Reply

_CONTAINER, _INSTANCE = "aws container credentials", "aws instance metadata"
_ROLES = "/latest/meta-data/iam/security-credentials/"
#: Seconds for the metadata service, which is next door: where there is none, nobody answers.
_SECONDS = 2.0
#: Answers of a metadata service, or of what stands in its place, that has only the first version.
_NO_SESSIONS = (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)
_NO_ENTRY = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


async def from_container(
    source: Container, config: AwsConfig, policy: Policy, transport: KeyServiceTransport
) -> Credentials:
    """Return what the container's agent gives."""
    token = config.get("AWS_CONTAINER_AUTHORIZATION_TOKEN")
    if path := config.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"):
        token = read_token(path, _CONTAINER)
    request = Request("GET", source.url, {"Authorization": token} if token else {}, credentials=True)
    return _parsed(await transport.send(_CONTAINER, lambda: request, policy), _CONTAINER)


async def from_instance(source: Instance, policy: Policy, transport: KeyServiceTransport) -> Credentials:
    """Ask the instance's metadata service: for a session, then the role's name, then its credentials.

    Where no session comes back, as behind a hop limit of 1, the first version of the service may still answer.
    """
    session, lost = await _session(source, policy, transport)
    headers = {"X-aws-ec2-metadata-token": session} if session else {}
    try:
        roles = await _ask("GET", source.base + _ROLES, headers, policy, transport)
    except NoAnswer:
        if session:
            raise
        raise UnwrapFailed(_no_session(lost)) from None
    if roles.status in _NO_ENTRY and not session:
        raise UnwrapFailed(_no_session(lost))
    role = roles.text().partition("\n")[0].strip()
    if roles.status != HTTPStatus.OK or not re.fullmatch(r"[\w+=,.@-]{1,128}", role):
        raise UnwrapFailed(f"{_INSTANCE}: the instance has no role (HTTP {roles.status})")
    return _parsed(await _ask("GET", source.base + _ROLES + role, headers, policy, transport), _INSTANCE)


async def _session(source: Instance, policy: Policy, transport: KeyServiceTransport) -> tuple[str, str]:
    """Return a session's token; or none, and why, where the first version of the service is worth asking."""
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "300"}
    try:
        reply = await _ask("PUT", f"{source.base}/latest/api/token", lifetime, policy, transport)
    except NoAnswer as error:
        if error.fault is not Fault.TIMEOUT:
            raise UnwrapFailed(NONE_FOUND) from None
        lost = str(error.fault)
    else:
        if reply.status == HTTPStatus.OK:
            return reply.text().strip(), ""
        lost = f"HTTP {reply.status}"
        if reply.status not in _NO_SESSIONS:
            raise UnwrapFailed(_no_session(lost))
    if not source.first_version:
        raise UnwrapFailed(_no_session(lost))
    return "", lost


def _no_session(why: str) -> str:
    return f"{_INSTANCE}: no session ({why}); is its hop limit too low for a container?"


async def _ask(
    method: str, url: str, headers: Mapping[str, str], policy: Policy, transport: KeyServiceTransport
) -> Reply:
    request = Request(method, url, headers, credentials=True, seconds=min(_SECONDS, transport.deadline))
    # A session that does not come back must not count as a service that is away: hence its own name.
    return await transport.send(f"{_INSTANCE} ({method})", lambda: request, policy)


def temporary(values: Mapping[str, str], source: str, *, token: str = "Token") -> Credentials:  # noqa: S107 - a key
    """Return credentials that expire. Raises UnwrapFailed when the values are none."""
    try:
        expires = datetime.fromisoformat(values["Expiration"]).astimezone(UTC) if "Expiration" in values else None
        return Credentials(values["AccessKeyId"], values["SecretAccessKey"], values.get(token, ""), expires)
    except (KeyError, ValueError, OverflowError):  # the last one for a time that is none in UTC
        raise UnwrapFailed(f"{source}: the answer has no credentials") from None


def read_token(path: str, source: str) -> str:
    """Return the token in a file, which is rotated under a running process. Raises UnwrapFailed."""
    try:
        return content(path).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise UnwrapFailed(f"{source}: its token file cannot be read") from None


def _parsed(reply: Reply, source: str) -> Credentials:
    if reply.status != HTTPStatus.OK:
        raise UnwrapFailed(f"{source}: refused (HTTP {reply.status})")
    return temporary({name: value for name, value in reply.content().items() if isinstance(value, str)}, source)
