"""AWS's shared files: which profile is meant, where its credentials come from, and what is refused with one line."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from app.core.errors import UnwrapFailed
from app.kms.aws_config import AwsConfig
from app.kms.aws_sigv4 import Credentials
from app.kms.aws_sources import AssumedRole, Container, Instance, Source, WebIdentity, choose
from app.kms.settings import KmsSettings
from tests.support.http_server import Receiver, Reply, Seen
from tests.support.key_services import CANARY, KEY, KEY_TEXT, SECRET, WHEN, answer, configured, kms, unwrap
from tests.support.tls import Authority

ROLE = "arn:aws:iam::1:role/worker"
STATIC = f"aws_access_key_id = AKID\naws_secret_access_key = {CANARY}\n"


def files(tmp_path: Path, config: str = "", credentials: str = "") -> dict[str, str]:
    """Write both files and return the variables that name them."""
    (tmp_path / "config").write_text(config)
    (tmp_path / "credentials").write_text(credentials)
    return {
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
    }


def chosen(environ: Mapping[str, str]) -> Source:
    return choose(AwsConfig(environ, "eu-central-1"))


# -------------------------------------------------------------------------------------------------- which profile


@pytest.mark.parametrize(
    ("variables", "key"),
    [
        ({}, "DEFAULT"),
        ({"AWS_PROFILE": "team"}, "TEAM"),
        ({"AWS_DEFAULT_PROFILE": "team"}, "TEAM"),
        ({"AWS_PROFILE": "team", "AWS_DEFAULT_PROFILE": "default"}, "TEAM"),
        ({"AWS_PROFILE": "two words"}, "WORDS"),
        ({"AWS_PROFILE": "DEFAULT"}, "LOUD"),
    ],
)
def test_the_profile_is_the_one_that_is_named_or_the_default(
    variables: dict[str, str], key: str, tmp_path: Path
) -> None:
    sections = (("default", "DEFAULT"), ("team", "TEAM"), ("two words", "WORDS"), ("DEFAULT", "LOUD"))
    text = "".join(f"[{name}]\naws_access_key_id={key}\naws_secret_access_key=s\n" for name, key in sections)
    assert chosen({**files(tmp_path, "", text), **variables}) == Credentials(key, "s")


def test_files_are_found_in_the_home_directory(tmp_path: Path) -> None:
    (tmp_path / ".aws").mkdir()
    files(tmp_path / ".aws", "", f"[default]\n{STATIC}")
    assert chosen({"HOME": str(tmp_path)}) == Credentials("AKID", CANARY)


def test_the_credentials_file_comes_before_the_config_file_which_names_its_profiles(tmp_path: Path) -> None:
    config = "[profile team]\naws_access_key_id = OLD\naws_secret_access_key = old\naws_session_token = of-the-old\n"
    config += "[team]\naws_access_key_id = NOT-A-PROFILE\naws_secret_access_key = x\n"
    both = files(tmp_path, config, f"[team]\n{STATIC}")
    assert chosen({**both, "AWS_PROFILE": "team"}) == Credentials("AKID", CANARY)
    alone = files(tmp_path, config)
    assert chosen({**alone, "AWS_PROFILE": "team"}) == Credentials("OLD", "old", "of-the-old")


def test_a_file_is_read_as_aws_writes_it(tmp_path: Path) -> None:
    text = (
        "\ufeff# a comment\n; another\nregion = before the first\n\n"
        "[default]   ; the one\n  \nAWS_Access_Key_ID: AKID   # inline\n"
        "aws_secret_access_key=a/b+c=%d\ns3 =\n  max_concurrent_requests = 20\n[default]\naws_session_token = t\n"
    )
    assert chosen(files(tmp_path, "", text)) == Credentials("AKID", "a/b+c=%d", "t")


def test_a_file_that_is_not_there_is_an_empty_one(tmp_path: Path) -> None:
    assert isinstance(chosen({"AWS_CONFIG_FILE": str(tmp_path / "none"), "HOME": str(tmp_path)}), Instance)


# --------------------------------------------------------------------------------------- where credentials come from


def test_sources_come_in_the_order_of_awss_own_clients(tmp_path: Path) -> None:
    agent = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.23/v1/credentials"}
    assert isinstance(chosen({}), Instance)
    assert chosen(agent) == Container("http://169.254.170.23/v1/credentials")
    task = {**agent, "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/x"}
    assert chosen(task) == Container("http://169.254.170.2/v2/x")
    profile = {**task, **files(tmp_path, "", f"[default]\n{STATIC}")}
    assert chosen(profile) == Credentials("AKID", CANARY)
    irsa = {**profile, "AWS_WEB_IDENTITY_TOKEN_FILE": "/jwt", "AWS_ROLE_ARN": ROLE}
    assert chosen(irsa) == WebIdentity(ROLE, "/jwt", "")
    keys = {**irsa, "AWS_ACCESS_KEY_ID": "ENV", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"}
    assert chosen(keys) == Credentials("ENV", "s", "t")
    assert chosen({"AWS_ACCESS_KEY": "OLD", "AWS_SECRET_KEY": "s"}) == Credentials("OLD", "s")


def test_a_container_may_be_served_by_itself_by_its_agents_or_over_tls_alone() -> None:
    for url in ("http://localhost:8080/x", "http://127.5.5.5/x", "http://[fd00:ec2::23]/v1", "https://agent.example/x"):
        assert chosen({"AWS_CONTAINER_CREDENTIALS_FULL_URI": url}) == Container(url)
    for url in ("http://agent.example/x", "http://169.254.169.254/x", "nonsense", "http://[", "http:///x"):
        with pytest.raises(UnwrapFailed, match="must be https://, or the container's own agent"):
            chosen({"AWS_CONTAINER_CREDENTIALS_FULL_URI": url})


def test_an_instance_is_asked_where_the_variables_or_the_profile_say(tmp_path: Path) -> None:
    mode, endpoint = "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "AWS_EC2_METADATA_SERVICE_ENDPOINT"
    assert chosen({}) == Instance("http://169.254.169.254", True)
    assert chosen({mode: "IPv6"}) == Instance("http://[fd00:ec2::254]", True)
    assert chosen({mode: "IPv6", endpoint: "http://here/"}) == Instance("http://here", True)
    assert chosen({"AWS_EC2_METADATA_V1_DISABLED": "true"}) == Instance("http://169.254.169.254", False)
    text = "[default]\nec2_metadata_service_endpoint_mode = ipv6\nec2_metadata_v1_disabled = true\n"
    assert chosen(files(tmp_path, text)) == Instance("http://[fd00:ec2::254]", False)


def test_a_profile_lends_its_role_the_credentials_of_another_place(tmp_path: Path) -> None:
    role = f"role_arn = {ROLE}\nrole_session_name = s\nexternal_id = e\nduration_seconds = 3600\n"
    config = f"""
[default]
{role}source_profile = base
[profile base]
{STATIC}
[profile chain]
role_arn = {ROLE}2
source_profile = default
[profile itself]
role_arn = {ROLE}
source_profile = itself
{STATIC}
[profile pod]
role_arn = {ROLE}
web_identity_token_file = /jwt
[profile task]
role_arn = {ROLE}
credential_source = EcsContainer
[profile machine]
role_arn = {ROLE}
credential_source = Ec2InstanceMetadata
[profile variables]
role_arn = {ROLE}
credential_source = Environment
"""
    environ = files(tmp_path, config)
    static = Credentials("AKID", CANARY)
    first = AssumedRole(ROLE, static, "s", "e", 3600)
    assert chosen(environ) == first
    assert chosen({**environ, "AWS_PROFILE": "chain"}) == AssumedRole(f"{ROLE}2", first, "", "", 900)
    assert chosen({**environ, "AWS_PROFILE": "itself"}) == AssumedRole(ROLE, static, "", "", 900)
    assert chosen({**environ, "AWS_PROFILE": "pod"}) == WebIdentity(ROLE, "/jwt", "")
    task = {**environ, "AWS_PROFILE": "task", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/x"}
    assert chosen(task) == AssumedRole(ROLE, Container("http://169.254.170.2/x"), "", "", 900)
    machine = chosen({**environ, "AWS_PROFILE": "machine"})
    assert isinstance(machine, AssumedRole)
    assert isinstance(machine.source, Instance)
    with pytest.raises(UnwrapFailed, match="credential_source is Environment, and no variable of that place is set"):
        chosen({**environ, "AWS_PROFILE": "variables"})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sso_session = x\n", "aws profile: a login by sso_ or login_session needs a person; use a role or an access "),
        ("sso_start_url = https://x\n", "aws profile: a login by sso_ or login_session needs a person; use a role or "),
        ("login_session = x\n", "aws profile: a login by sso_ or login_session needs a person; use a role or an "),
        (
            f"credential_process = /bin/cat {CANARY}\n",
            "aws profile: credential_process is not supported, since this worker starts no programs",
        ),
        (
            f"role_arn = {ROLE}\nsource_profile = default\nmfa_serial = m\n{STATIC}",
            "aws profile: mfa_serial is not supported, since nobody is there to enter a code",
        ),
        ("source_profile = default\n", "aws profile: source_profile needs a role_arn beside it"),
        (f"role_arn = {ROLE}\nsource_profile = default\n", "aws profile: source_profile leads in a circle"),
        (f"role_arn = {ROLE}\nsource_profile = gone\n", "aws profile: source_profile names one that is in neither "),
        (
            f"role_arn = {ROLE}\ncredential_source = {CANARY}\n",
            "aws profile: credential_source is not known; accepted: Environment, EcsContainer, Ec2InstanceMetadata",
        ),
        (
            f"role_arn = {ROLE}\ncredential_source = Environment\nsource_profile = default\n",
            "aws profile: source_profile and credential_source are both in it; only one of them may be",
        ),
        (
            f"aws_access_key_id = {CANARY}\n",
            "aws profile: aws_access_key_id and aws_secret_access_key must both be in it",
        ),
        (
            f"aws_secret_access_key = {CANARY}\n",
            "aws profile: aws_access_key_id and aws_secret_access_key must both be in it",
        ),
        ("max_attempts = many\n" + STATIC, "AWS_MAX_ATTEMPTS: not a number of attempts; accepted: 1 or more"),
        ("use_fips_endpoint = on\n" + STATIC, "AWS_USE_FIPS_ENDPOINT: not a boolean; accepted: true, false"),
        (
            f"= {CANARY}\n",
            "aws profile: the file of AWS_CONFIG_FILE is not in AWS's form of sections and key = value",
        ),
    ],
)
def test_what_a_profile_may_not_have_is_one_line_at_boot(
    monkeypatch: pytest.MonkeyPatch, text: str, told: str, tmp_path: Path
) -> None:
    aws = {"SB_KMS_BACKEND": "aws-kms", "SB_KMS_AWS_REGION": "eu-central-1", "SB_KMS_AWS_KEY_ID": "k"}
    settings = configured(monkeypatch, **aws, **files(tmp_path, "[default]\n" + text))
    (problem,) = settings.key_problems(dev=False)
    assert problem.startswith(told)
    assert CANARY not in problem


# ----------------------------------------------------------------------------------------------- asked as configured


def test_an_assumed_role_is_asked_for_with_the_other_credentials(tmp_path: Path) -> None:
    expires = f"{WHEN + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"
    values = {"AccessKeyId": "ASIA1", "SecretAccessKey": SECRET, "SessionToken": "session", "Expiration": expires}
    xml = "".join(f"<{name}>{value}</{name}>" for name, value in values.items())

    def serve(seen: Seen) -> Reply:
        if seen.path == "/sts/":
            return Reply(200, f"<AssumeRoleResponse><Credentials>{xml}</Credentials></AssumeRoleResponse>".encode())
        assert "Credential=ASIA1/" in seen.headers["authorization"]
        assert seen.headers["x-amz-security-token"] == "session"
        return answer(200, Plaintext=KEY_TEXT)

    config = f"[default]\nrole_arn = {ROLE}\nsource_profile = base\nexternal_id = e\n[profile base]\n{STATIC}"
    with Receiver(serve) as server:
        environ = {**files(tmp_path, config), "AWS_ENDPOINT_URL_STS": f"{server.url}/sts"}
        assert unwrap(kms(server.url, environ), b"blob", times=3) == [KEY] * 3
    (asked,) = [seen for seen in server.seen if seen.path == "/sts/"]
    assert "Credential=AKID/20261123/eu-central-1/sts/aws4_request" in asked.headers["authorization"]
    assert {name: values[0] for name, values in parse_qs(asked.body.decode()).items()} == {
        "Action": "AssumeRole",
        "Version": "2011-06-15",
        "RoleArn": ROLE,
        "RoleSessionName": "secrets-bridge-worker",
        "DurationSeconds": "900",
        "ExternalId": "e",
    }


def test_keys_in_a_file_are_those_that_are_there_when_the_old_ones_are_refused(tmp_path: Path) -> None:
    environ = files(tmp_path, "", "[default]\naws_access_key_id = OLD\naws_secret_access_key = s\n")

    def serve(seen: Seen) -> Reply:
        if "Credential=OLD/" in seen.headers["authorization"]:
            files(tmp_path, "", "[default]\naws_access_key_id = NEW\naws_secret_access_key = s\n")
            return answer(400, __type="UnrecognizedClientException")
        return answer(200, Plaintext=KEY_TEXT)

    with Receiver(serve) as server:
        assert unwrap(kms(server.url, environ), b"blob") == [KEY]
    assert len(server.seen) == 2


def test_a_profile_says_where_services_are_and_how_they_are_asked(tmp_path: Path) -> None:
    config = """
[default]
use_fips_endpoint = true
max_attempts = 7
[profile own]
services = local
endpoint_url = https://all
[services local]
kms =
  endpoint_url = https://kms.own
"""
    environ = files(tmp_path, config)
    assert AwsConfig(environ, "eu-west-1").endpoint("kms") == "https://kms-fips.eu-west-1.amazonaws.com/"
    assert AwsConfig(environ, "eu-west-1").retries == 6
    own = AwsConfig({**environ, "AWS_PROFILE": "own"}, "eu-west-1")
    assert (own.endpoint("kms"), own.endpoint("sts")) == ("https://kms.own/", "https://all/")


def test_a_profiles_authorities_verify_the_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    aws = {"SB_KMS_BACKEND": "aws-kms", "SB_KMS_AWS_REGION": "eu-central-1", "SB_KMS_AWS_KEY_ID": "k"}
    variables = files(tmp_path, f"[default]\nca_bundle = {authority.file}\n{STATIC}")
    settings: KmsSettings = configured(monkeypatch, **aws, **variables)
    assert list(settings.key_problems(dev=False)) == []
    assert settings.key_context.cert_store_stats()["x509"] == 1
