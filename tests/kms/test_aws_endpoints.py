"""Every region that AWS publishes, with its endpoints, and the variables that choose others."""

from __future__ import annotations

import pytest

from app.core.errors import UnwrapFailed
from app.kms.aws_config import AwsConfig, is_region
from app.kms.settings import KmsSettings
from tests.support.key_services import configured

#: AWS's partitions as its own clients have them: the domains of endpoints, those with IPv6, the regions.
PUBLISHED = {
    ("amazonaws.com", "api.aws"): (
        "af-south-1 ap-east-1 ap-east-2 ap-northeast-1 ap-northeast-2 ap-northeast-3 ap-south-1 ap-south-2 "
        "ap-southeast-1 ap-southeast-2 ap-southeast-3 ap-southeast-4 ap-southeast-5 ap-southeast-6 ap-southeast-7 "
        "ca-central-1 ca-west-1 eu-central-1 eu-central-2 eu-north-1 eu-south-1 eu-south-2 eu-west-1 eu-west-2 "
        "eu-west-3 il-central-1 me-central-1 me-south-1 me-west-1 mx-central-1 sa-east-1 sa-west-1 us-east-1 us-east-2 "
        "us-west-1 us-west-2 us-gov-east-1 us-gov-west-1"
    ),
    ("amazonaws.com.cn", "api.amazonwebservices.com.cn"): "cn-north-1 cn-northwest-1",
    ("amazonaws.eu", "api.amazonwebservices.eu"): "eusc-de-east-1",
    ("c2s.ic.gov", "api.aws.ic.gov"): "us-iso-east-1 us-iso-west-1",
    ("sc2s.sgov.gov", "api.aws.scloud"): "us-isob-east-1 us-isob-west-1",
    ("cloud.adc-e.uk", "api.cloud-aws.adc-e.uk"): "eu-isoe-west-1",
    ("csp.hci.ic.gov", "api.aws.hci.ic.gov"): "us-isof-east-1 us-isof-south-1",
}
REGIONS = [(region, *domains) for domains, regions in PUBLISHED.items() for region in regions.split()]
FIPS, DUAL = {"AWS_USE_FIPS_ENDPOINT": "true"}, {"AWS_USE_DUALSTACK_ENDPOINT": "true"}


@pytest.mark.parametrize(("region", "domain", "dual"), REGIONS)
def test_a_published_region_has_its_own_endpoints(
    monkeypatch: pytest.MonkeyPatch, region: str, domain: str, dual: str
) -> None:
    aws = {"SB_KMS_BACKEND": "aws-kms", "SB_KMS_AWS_REGION": region, "SB_KMS_AWS_KEY_ID": "k"}
    assert list(configured(monkeypatch, **aws).key_problems(dev=False)) == []
    assert AwsConfig({}, region).endpoint("kms") == f"https://kms.{region}.{domain}/"
    assert AwsConfig({}, region).endpoint("sts") == f"https://sts.{region}.{domain}/"
    assert AwsConfig(FIPS, region).endpoint("kms") == f"https://kms-fips.{region}.{domain}/"
    assert AwsConfig(DUAL, region).endpoint("kms") == f"https://kms.{region}.{dual}/"
    assert AwsConfig({**FIPS, **DUAL}, region).endpoint("kms") == f"https://kms-fips.{region}.{dual}/"
    assert AwsConfig({**FIPS, **DUAL}, region).endpoint("sts") == f"https://sts-fips.{region}.{dual}/"
    fips_of_sts = "sts" if region.startswith("us-gov-") else "sts-fips"
    assert AwsConfig(FIPS, region).endpoint("sts") == f"https://{fips_of_sts}.{region}.{domain}/"


@pytest.mark.parametrize("name", ["fips-us-gov-west-1", "us-gov-west-1-fips"])
def test_the_old_names_of_fips_endpoints_mean_the_region_and_its_fips_endpoint(name: str) -> None:
    config = AwsConfig({}, name)
    assert is_region(name)
    assert config.region == "us-gov-west-1"
    assert config.endpoint("kms") == "https://kms-fips.us-gov-west-1.amazonaws.com/"


@pytest.mark.parametrize(
    "name", ["here", "eu", "eu-central", "eu_central_1", "EU-CENTRAL-1", "eu-central-1/", "a-b-1.x"]
)
def test_what_is_no_region_is_none(name: str) -> None:
    assert not is_region(name)


@pytest.mark.parametrize(
    ("environ", "own", "kms", "sts"),
    [
        ({"AWS_ENDPOINT_URL": "https://all/"}, "", "https://all/", "https://all/"),
        ({"AWS_ENDPOINT_URL": "https://all", "AWS_ENDPOINT_URL_KMS": "https://k"}, "", "https://k/", "https://all/"),
        ({"AWS_ENDPOINT_URL_STS": "https://s"}, "", "https://kms.eu-west-1.amazonaws.com/", "https://s/"),
        ({"AWS_ENDPOINT_URL": "https://all"}, "https://own", "https://own/", "https://all/"),
        (
            {"AWS_ENDPOINT_URL": "https://all", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "TRUE"},
            "https://own",
            "https://own/",
            "https://sts.eu-west-1.amazonaws.com/",
        ),
    ],
)
def test_an_endpoint_of_ones_own_comes_before_the_regions(
    environ: dict[str, str], own: str, kms: str, sts: str
) -> None:
    config = AwsConfig(environ, "eu-west-1", own)
    assert (config.endpoint("kms"), config.endpoint("sts")) == (kms, sts)


@pytest.mark.parametrize("choice", [FIPS, DUAL])
def test_an_endpoint_of_ones_own_is_neither_fips_nor_dual_stack(choice: dict[str, str]) -> None:
    with pytest.raises(UnwrapFailed, match=r"^SB_KMS_AWS_ENDPOINT: set together with AWS_USE_FIPS_ENDPOINT or "):
        AwsConfig(choice, "eu-west-1", "https://own").endpoint("kms")


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"AWS_USE_FIPS_ENDPOINT": "yes"}, "AWS_USE_FIPS_ENDPOINT: not a boolean; accepted: true, false"),
        ({"AWS_MAX_ATTEMPTS": "-1"}, "AWS_MAX_ATTEMPTS: not a number of attempts; accepted: 1 or more"),
        ({"AWS_PROFILE": "x"}, "aws profile: AWS_PROFILE names one that is in neither AWS_CONFIG_FILE nor "),
        (
            {"AWS_ENDPOINT_URL_STS": "http://sts.example"},
            "AWS_ENDPOINT_URL_STS: plain http:// is for SB_ENV=dev and for ",
        ),
        ({"AWS_ENDPOINT_URL": "here"}, "AWS_ENDPOINT_URL: not a URL; accepted: https://host"),
        ({"AWS_ACCESS_KEY_ID": "AKID"}, "aws credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must both be "),
        ({"AWS_WEB_IDENTITY_TOKEN_FILE": "/x"}, "aws web identity: AWS_ROLE_ARN is not set"),
        ({"AWS_EC2_METADATA_DISABLED": "true"}, "aws credentials: none found; looked at: environment, web identity, "),
        (
            {"SB_KMS_AWS_ENDPOINT": "http://kms.example"},
            "SB_KMS_AWS_ENDPOINT: plain http:// is for SB_ENV=dev and for ",
        ),
    ],
)
def test_what_no_client_could_use_is_told_at_boot(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str
) -> None:
    aws = {"SB_KMS_BACKEND": "aws-kms", "SB_KMS_AWS_REGION": "eu-west-1", "SB_KMS_AWS_KEY_ID": "k"}
    (found,) = configured(monkeypatch, **aws, **variables).key_problems(dev=False)
    assert found.startswith(told)


def test_a_local_stand_in_for_aws_needs_no_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    aws = {"SB_KMS_BACKEND": "aws-kms", "SB_KMS_AWS_REGION": "eu-west-1", "SB_KMS_AWS_KEY_ID": "k"}
    settings: KmsSettings = configured(monkeypatch, **aws, SB_KMS_AWS_ENDPOINT="http://127.0.0.1:4566")
    assert list(settings.key_problems(dev=False)) == []
