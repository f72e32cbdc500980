"""The variables of key management, and the key manager that they describe. Checked only where tokens are opened."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from functools import cached_property

from pydantic import SecretStr

from app.core.config import Settings, variable
from app.core.errors import UnwrapFailed
from app.kms.aws_config import AwsConfig, is_region
from app.kms.aws_sources import choose
from app.kms.checks import ca_problem, pem, url_problem
from app.kms.envelope import KeyManager
from app.kms.local import LocalKeys, parse_master
from app.kms.vault_settings import VAULT, VaultSettings, text

LOCAL, AWS = "local", "aws-kms"


class _Backend(Settings):
    """Which key service it is."""

    kms_backend: str = variable(
        "SB_KMS_BACKEND", default=LOCAL, meaning="local (SB_ENV=dev only), vault-transit or aws-kms"
    )
    master_key: SecretStr | None = text(
        "SB_WRAP_MASTER_KEY", secret=True, meaning="local: the master key, base64 of 32 bytes"
    )


class KmsSettings(VaultSettings, _Backend):
    """How the envelopes of ArgoCD tokens are opened; the api's own variables."""

    aws_region: str | None = text("SB_KMS_AWS_REGION", meaning="aws-kms: the region")
    aws_key: str | None = text("SB_KMS_AWS_KEY_ID", meaning="aws-kms: id, alias or ARN of the key")
    aws_endpoint: str | None = text("SB_KMS_AWS_ENDPOINT", meaning="aws-kms: an endpoint of your own")
    aws_ca: str | None = text("AWS_CA_BUNDLE", meaning="aws-kms: a PEM file that replaces the system's authorities")

    def key_problems(self, *, dev: bool) -> Iterator[str]:
        """Yield what would keep tokens closed, one line each, without a value. `dev` is whether SB_ENV is dev."""
        if self.kms_backend == LOCAL:
            yield from self._local_problems(dev=dev)
        elif self.kms_backend == VAULT:
            yield from self.vault_problems(dev=dev)
        elif self.kms_backend == AWS:
            yield from self._aws_problems(dev=dev)
        else:
            yield "SB_KMS_BACKEND: not a key service; accepted: local, vault-transit, aws-kms"

    def _local_problems(self, *, dev: bool) -> Iterator[str]:
        if not dev:
            yield "SB_KMS_BACKEND: local is for SB_ENV=dev only; accepted here: vault-transit, aws-kms"
            return
        if self.master_key is None:
            yield "SB_WRAP_MASTER_KEY: required by SB_KMS_BACKEND=local, but not set"
            return
        try:
            parse_master(self.master_key.get_secret_value())
        except ValueError as error:
            yield f"SB_WRAP_MASTER_KEY: {error}"

    def _aws_problems(self, *, dev: bool) -> Iterator[str]:
        for name, value in {"SB_KMS_AWS_REGION": self.aws_region, "SB_KMS_AWS_KEY_ID": self.aws_key}.items():
            if not value:
                yield f"{name}: required by SB_KMS_BACKEND={AWS}, but not set"
        if self.aws_region and not is_region(self.aws_region):
            yield "SB_KMS_AWS_REGION: not a region; accepted: a name such as eu-central-1"
        config = AwsConfig(os.environ, self.aws_region or "", self.aws_endpoint or "")
        try:
            for url, name in dict.fromkeys(map(config.own_endpoint, ("kms", "sts"))):
                yield from url_problem(name, url, dev=dev)
            config.endpoint("kms")
            config.endpoint("sts")
            choose(config)
            config.retries  # noqa: B018 - what is wrong with it
        except UnwrapFailed as error:
            yield str(error)
        yield from ca_problem("AWS_CA_BUNDLE", self._aws_authorities)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was taken as another value, and what the Go worker's clients heed and ours do not."""
        return (*super().warnings, *(self.vault_warnings if self.kms_backend == VAULT else ()))

    @cached_property
    def keys(self) -> KeyManager:
        """The key manager of settings without problems. Made once, because it keeps logins; this contacts nothing."""
        if self.kms_backend == VAULT:
            return self.vault_keys
        if self.kms_backend == AWS:
            from app.kms import aws  # noqa: PLC0415 - an HTTP client of 17 MiB, only where tokens are opened

            return aws.AwsKeys(aws.Place(self.aws_region or "", self.aws_key or "", self.aws_endpoint or ""))
        assert self.master_key is not None
        return LocalKeys(parse_master(self.master_key.get_secret_value()))

    @property
    def key_context(self) -> ssl.SSLContext:
        """The TLS context that verifies the key service. Raises OSError or ValueError for a bad file."""
        if self.kms_backend == VAULT:
            return self.vault_context()
        from app.core.http import tls_context  # noqa: PLC0415 - the same

        path = self._aws_authorities if self.kms_backend == AWS else None
        return tls_context(pem=pem(path) if path else None)

    @property
    def _aws_authorities(self) -> str | None:
        try:
            return self.aws_ca or AwsConfig(os.environ).profile.get("ca_bundle")
        except UnwrapFailed:  # a problem of its own
            return None
