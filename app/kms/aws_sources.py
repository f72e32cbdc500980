"""Where AWS credentials come from: the same places in the same order as for the Go worker's client.

Variables, web identity (IRSA), the profile in the shared files, container (ECS, EKS pod identity), instance. This says
which one is configured and asks nobody. The variables are AWS's own, documented at
https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from app.core.egress import literal
from app.core.errors import UnwrapFailed
from app.kms.aws_config import AwsConfig
from app.kms.aws_profile import Section
from app.kms.aws_sigv4 import Credentials
from app.kms.checks import is_loopback

_CONTAINER, _INSTANCE, _INSTANCE_IPV6 = "http://169.254.170.2", "http://169.254.169.254", "http://[fd00:ec2::254]"
#: The agents of ECS and EKS, which serve a container's credentials without TLS.
_AGENTS = frozenset(map(literal, ("169.254.170.2", "169.254.170.23", "fd00:ec2::23")))
#: Seconds for which an assumed role's credentials are valid, and the least that a profile may ask for.
_ROLE_SECONDS = 900
NONE_FOUND = "aws credentials: none found; looked at: environment, web identity, profile, container, instance metadata"


@dataclass(frozen=True)
class WebIdentity:
    """A role for the bearer of a token in a file."""

    role: str
    token_file: str
    session: str


@dataclass(frozen=True)
class Container:
    """An agent beside the container; it may want a token, which may be in a file."""

    url: str


@dataclass(frozen=True)
class Instance:
    """The metadata service of the machine; of its first version too if it has no session to give."""

    base: str
    first_version: bool


@dataclass(frozen=True)
class AssumedRole:
    """A role for whom other credentials are of."""

    role: str
    source: Source
    session: str
    external_id: str
    seconds: int


Source = Credentials | WebIdentity | Container | Instance | AssumedRole


def choose(config: AwsConfig) -> Source:
    """Return the first source that is configured. Raises UnwrapFailed for one that cannot be used, or when none is."""
    if found := _in_variables(config):
        return found
    if token_file := config.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        if not config.get("AWS_ROLE_ARN"):
            raise UnwrapFailed("aws web identity: AWS_ROLE_ARN is not set")
        return WebIdentity(config.get("AWS_ROLE_ARN"), token_file, config.get("AWS_ROLE_SESSION_NAME"))
    return _in_profile(config, config.profile, seen=())


def _in_variables(config: AwsConfig) -> Credentials | None:
    access = config.get("AWS_ACCESS_KEY_ID") or config.get("AWS_ACCESS_KEY")
    secret = config.get("AWS_SECRET_ACCESS_KEY") or config.get("AWS_SECRET_KEY")
    if bool(access) != bool(secret):
        raise UnwrapFailed("aws credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must both be set")
    return Credentials(access, secret, config.get("AWS_SESSION_TOKEN")) if access else None


def _in_profile(config: AwsConfig, profile: Section, *, seen: tuple[str, ...]) -> Source:
    """Return a profile's source; `seen` are the profiles that lead to it."""
    role = profile.get("role_arn", "")
    lent = [key for key in ("source_profile", "credential_source", "web_identity_token_file") if profile.get(key)]
    if len(lent) > 1:
        raise UnwrapFailed(f"aws profile: {' and '.join(lent)} are both in it; only one of them may be")
    if lent and not role:
        raise UnwrapFailed(f"aws profile: {lent[0]} needs a role_arn beside it")
    if "web_identity_token_file" in lent:
        return WebIdentity(role, profile["web_identity_token_file"], profile.get("role_session_name", ""))
    if "source_profile" in lent:
        source = _of_source_profile(config, profile, seen)
    elif "credential_source" in lent:
        source = _of_credential_source(config, profile["credential_source"])
    else:
        source = _own(config, profile)
    return _assumed(profile, source) if role else source


def _of_source_profile(config: AwsConfig, profile: Section, seen: tuple[str, ...]) -> Source:
    name = profile["source_profile"]
    source = config.profiles.named(name, "source_profile")
    if source.get("aws_access_key_id"):  # the end of a chain, though it may have a role of its own
        return _own(config, source)
    if name in seen:
        raise UnwrapFailed("aws profile: source_profile leads in a circle")
    return _in_profile(config, source, seen=(*seen, name))


def _of_credential_source(config: AwsConfig, word: str) -> Source:
    places: dict[str, Callable[[AwsConfig], Source | None]] = {
        "Environment": _in_variables,
        "EcsContainer": _container,
        "Ec2InstanceMetadata": _instance,
    }
    if word not in places:
        raise UnwrapFailed(f"aws profile: credential_source is not known; accepted: {', '.join(places)}")
    source = places[word](config)
    if source is None:
        raise UnwrapFailed(f"aws profile: credential_source is {word}, and no variable of that place is set")
    return source


def _own(config: AwsConfig, profile: Section) -> Source:
    """Return the credentials in a profile itself, or what is left when it has none: container, instance."""
    if profile.get("aws_access_key_id"):
        return Credentials(
            profile["aws_access_key_id"], profile["aws_secret_access_key"], profile.get("aws_session_token", "")
        )
    if any(key.startswith("sso_") for key in profile) or "login_session" in profile:
        raise UnwrapFailed("aws profile: a login by sso_ or login_session needs a person; use a role or an access key")
    if profile.get("credential_process"):
        raise UnwrapFailed("aws profile: credential_process is not supported, since this worker starts no programs")
    return _container(config) or _instance(config)


def _assumed(profile: Section, source: Source) -> AssumedRole:
    if profile.get("mfa_serial"):
        raise UnwrapFailed("aws profile: mfa_serial is not supported, since nobody is there to enter a code")
    asked = profile.get("duration_seconds", "")
    seconds = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 6 else 0  # noqa: PLR2004 - half a day
    return AssumedRole(
        profile["role_arn"],
        source,
        profile.get("role_session_name", ""),
        profile.get("external_id", ""),
        max(seconds, _ROLE_SECONDS),
    )


def _container(config: AwsConfig) -> Container | None:
    if relative := config.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"):
        return Container(_CONTAINER + relative)
    url = config.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
    if not url:
        return None
    try:
        scheme, host = urlsplit(url).scheme, urlsplit(url).hostname or ""
    except ValueError:
        scheme, host = "", ""
    if not host or (scheme != "https" and not is_loopback(host) and literal(host) not in _AGENTS):
        raise UnwrapFailed(
            "aws container credentials: AWS_CONTAINER_CREDENTIALS_FULL_URI must be https://, "
            "or the container's own agent"
        )
    return Container(url)


def _instance(config: AwsConfig) -> Instance:
    if config.get("AWS_EC2_METADATA_DISABLED").lower() == "true":
        raise UnwrapFailed(NONE_FOUND)
    mode = config.get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "ec2_metadata_service_endpoint_mode").lower()
    if mode not in ("", "ipv4", "ipv6"):
        raise UnwrapFailed("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE: not a mode; accepted: IPv4, IPv6")
    own = config.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "ec2_metadata_service_endpoint")
    base = own or (_INSTANCE_IPV6 if mode == "ipv6" else _INSTANCE)
    only_second = config.flag("AWS_EC2_METADATA_V1_DISABLED", "ec2_metadata_v1_disabled")
    return Instance(base.rstrip("/"), not only_second)
