"""What AWS's own clients read beside credentials: variables first, then the profile; and where its services are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property

from app.core.errors import UnwrapFailed
from app.kms.aws_profile import Profiles, Section

#: Attempts at a request, in Go's client.
ATTEMPTS = 3
#: The domains of a partition's endpoints, and those that answer over IPv6 as well, by how its regions' names begin.
#: As in https://github.com/boto/botocore/blob/develop/botocore/data/partitions.json. All other regions are of `aws`
#: or `aws-us-gov`, whose domains are the same.
_PARTITIONS = {
    "cn-": ("amazonaws.com.cn", "api.amazonwebservices.com.cn"),
    "eusc-": ("amazonaws.eu", "api.amazonwebservices.eu"),
    "us-iso-": ("c2s.ic.gov", "api.aws.ic.gov"),
    "us-isob-": ("sc2s.sgov.gov", "api.aws.scloud"),
    "eu-isoe-": ("cloud.adc-e.uk", "api.cloud-aws.adc-e.uk"),
    "us-isof-": ("csp.hci.ic.gov", "api.aws.hci.ic.gov"),
}
_AWS = ("amazonaws.com", "api.aws")
_REGION = re.compile(r"[a-z]{2,8}(-[a-z0-9]+)+-[0-9]{1,2}")
_FIPS = re.compile(r"fips-|-fips$")


def is_region(name: str) -> bool:
    """Return whether this is the name of a region, of today's or of one to come."""
    return _REGION.fullmatch(_FIPS.sub("", name, count=1)) is not None


class AwsConfig:
    """The variables and the profile, as they are now. Its methods raise UnwrapFailed for what no client could use."""

    def __init__(self, environ: Mapping[str, str], region: str = "", endpoint: str = "") -> None:
        """`region` may have AWS's old mark of a FIPS endpoint; `endpoint` replaces that of the key service."""
        self.environ = environ
        self.region = _FIPS.sub("", region, count=1)
        self._marked = self.region != region
        self._endpoint = endpoint

    @cached_property
    def profiles(self) -> Profiles:
        """The shared files."""
        return Profiles(self.environ)

    @cached_property
    def profile(self) -> Section:
        """The chosen profile."""
        return self.profiles.chosen()

    def get(self, variable: str, key: str = "") -> str:
        """Return a variable, or else the profile's key; empty when neither is set."""
        return self.environ.get(variable, "") or (self.profile.get(key, "") if key else "")

    def flag(self, variable: str, key: str = "") -> bool:
        """Return a variable, or else the profile's key, that is true or false."""
        word = self.get(variable, key).lower()
        if word not in ("", "true", "false"):
            raise UnwrapFailed(f"{variable}: not a boolean; accepted: true, false")
        return word == "true"

    @property
    def retries(self) -> int:
        """How often a request that failed is sent again."""
        text = self.get("AWS_MAX_ATTEMPTS", "max_attempts") or "0"
        if not re.fullmatch("[0-9]{1,4}", text):
            raise UnwrapFailed("AWS_MAX_ATTEMPTS: not a number of attempts; accepted: 1 or more")
        return (int(text) or ATTEMPTS) - 1

    def own_endpoint(self, service: str) -> tuple[str, str]:
        """Return the URL that replaces a service's own, and the variable that names it; both empty without one."""
        if service == "kms" and self._endpoint:
            return self._endpoint, "SB_KMS_AWS_ENDPOINT"
        if self.flag("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "ignore_configured_endpoint_urls"):
            return "", ""
        own = f"AWS_ENDPOINT_URL_{service.upper()}"
        for name in (own, "AWS_ENDPOINT_URL"):
            if url := self.environ.get(name, ""):
                return url, name
        of_service = self.profiles.service(self.profile, service).get("endpoint_url", "")
        url = of_service or self.profile.get("endpoint_url", "")
        return url, own if url else ""

    def endpoint(self, service: str) -> str:
        """Return the URL of a service in the region, with a slash at its end."""
        fips = self._marked or self.flag("AWS_USE_FIPS_ENDPOINT", "use_fips_endpoint")
        both = self.flag("AWS_USE_DUALSTACK_ENDPOINT", "use_dualstack_endpoint")
        url, name = self.own_endpoint(service)
        if url:
            if fips or both:
                raise UnwrapFailed(f"{name}: set together with AWS_USE_FIPS_ENDPOINT or AWS_USE_DUALSTACK_ENDPOINT")
            return url.rstrip("/") + "/"
        domains = next((d for begin, d in _PARTITIONS.items() if self.region.startswith(begin)), _AWS)
        # The GovCloud's STS is a FIPS endpoint under its plain name.
        plain = not fips or (service == "sts" and self.region.startswith("us-gov-") and not both)
        return f"https://{service if plain else service + '-fips'}.{self.region}.{domains[both]}/"
