"""Finds AWS credentials: asks the source that is configured, and what that one needs first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.kms.aws_metadata import from_container, from_instance
from app.kms.aws_sigv4 import Credentials
from app.kms.aws_sources import AssumedRole, Container, Instance, Source, WebIdentity, choose
from app.kms.aws_sts import from_role, from_web_identity

if TYPE_CHECKING:
    from app.kms.aws_client import AwsClient
    from app.kms.aws_config import AwsConfig
    from app.kms.transport import KeyServiceTransport


async def find(config: AwsConfig, client: AwsClient, transport: KeyServiceTransport) -> Credentials:
    """Return credentials from the first source that is configured. Raises UnwrapFailed, which names the source."""
    return await _fetch(choose(config), config, client, transport)


async def _fetch(source: Source, config: AwsConfig, client: AwsClient, transport: KeyServiceTransport) -> Credentials:
    match source:
        case Credentials():
            return source
        case WebIdentity():
            return await from_web_identity(source, config.endpoint("sts"), client, transport)
        case Container():
            return await from_container(source, config, client.policy, transport)
        case Instance():
            return await from_instance(source, client.policy, transport)
        case AssumedRole():
            credentials = await _fetch(source.source, config, client, transport)
            return await from_role(source, credentials, config.endpoint("sts"), client, transport)
