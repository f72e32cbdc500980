"""AWS's Security Token Service: credentials of a role, for the bearer of a web identity or of other credentials."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from app.core.errors import UnwrapFailed
from app.kms.aws_client import THROTTLING, AwsClient, error_of
from app.kms.aws_metadata import read_token, temporary

if TYPE_CHECKING:
    from app.kms.aws_sigv4 import Credentials
    from app.kms.aws_sources import AssumedRole, WebIdentity
    from app.kms.transport import KeyServiceTransport

_SESSION = "secrets-bridge-worker"


async def from_web_identity(
    source: WebIdentity, url: str, client: AwsClient, transport: KeyServiceTransport
) -> Credentials:
    """Return credentials of a role for the bearer of the token in its file."""
    name = "aws web identity"
    form = {
        "Action": "AssumeRoleWithWebIdentity",
        "RoleArn": source.role,
        "RoleSessionName": source.session or _SESSION,
        "WebIdentityToken": read_token(source.token_file, name),
    }
    return await _ask(name, form, url, client, transport, None)


async def from_role(
    source: AssumedRole, credentials: Credentials, url: str, client: AwsClient, transport: KeyServiceTransport
) -> Credentials:
    """Return credentials of a role for whom `credentials` are of."""
    form = {
        "Action": "AssumeRole",
        "RoleArn": source.role,
        "RoleSessionName": source.session or _SESSION,
        "DurationSeconds": str(source.seconds),
    }
    if source.external_id:
        form["ExternalId"] = source.external_id
    return await _ask("aws assumed role", form, url, client, transport, credentials)


async def _ask(  # noqa: PLR0913, PLR0917 - what a request is
    name: str,
    form: dict[str, str],
    url: str,
    client: AwsClient,
    transport: KeyServiceTransport,
    credentials: Credentials | None,
) -> Credentials:
    body = urlencode({**form, "Version": "2011-06-15"}).encode()
    headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
    reply = await client.post(transport, name, url, headers, body, service="sts", credentials=credentials)
    if reply.status != HTTPStatus.OK:
        error = error_of(reply)
        if reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR or error in THROTTLING:
            raise UnwrapFailed(f"{name}: {error}")
        raise UnwrapFailed(f"{name}: refused ({error}); check the role's ARN and its trust policy")
    # STS answers in XML; each of these four names occurs in it once.
    names = ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration")
    text = reply.text()
    values = {key: match[1] for key in names if (match := re.search(rf"<{key}>\s*([^<\s]+)\s*</{key}>", text))}
    return temporary(values, name, token="SessionToken")  # noqa: S106 - a name
