"""The variables of key management, and the key manager that they describe. Checked only where tokens are opened."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from app.core.config import Settings, variable
from app.core.egress import literal, never_dialled
from app.core.values import TRUE
from app.kms.envelope import KeyManager
from app.kms.local import LocalKeys, parse_master

LOCAL, VAULT, AWS = "local", "vault-transit", "aws-kms"
_JWT = "/var/run/secrets/kubernetes.io/serviceaccount/token"


def _text(*names: str, meaning: str, default: str = "", secret: bool = False) -> Any:
    return variable(*names, default=default or None, meaning=meaning, secret=secret)


class KmsSettings(Settings):
    """How the envelopes of ArgoCD tokens are opened; the api's own variables."""

    kms_backend: str = variable(
        "SB_KMS_BACKEND", default=LOCAL, meaning="local (SB_ENV=dev only), vault-transit or aws-kms"
    )
    master_key: SecretStr | None = _text(
        "SB_WRAP_MASTER_KEY", secret=True, meaning="local: the master key, base64 of 32 bytes"
    )
    vault_address: str | None = _text("SB_KMS_VAULT_ADDR", meaning="vault-transit: its https:// URL")
    vault_token: SecretStr | None = _text(
        "SB_KMS_VAULT_TOKEN", secret=True, meaning="vault-transit: a token that may update <mount>/decrypt/<key>"
    )
    vault_key: str | None = _text("SB_KMS_VAULT_KEY", meaning="vault-transit: name of the key")
    vault_mount: str = variable("SB_KMS_VAULT_MOUNT", default="transit", meaning="vault-transit: where it is mounted")
    vault_namespace: str | None = _text(
        "SB_KMS_VAULT_NAMESPACE", "VAULT_NAMESPACE", meaning="vault-transit: its namespace"
    )
    vault_ca: str | None = _text(
        "SB_KMS_VAULT_CACERT",
        "VAULT_CACERT",
        meaning="vault-transit: a PEM file that replaces the system's authorities",
    )
    vault_unverified: str | None = _text("VAULT_SKIP_VERIFY", meaning="not supported: Vault is always verified")
    vault_role: str | None = _text(
        "SB_KMS_VAULT_KUBERNETES_ROLE", meaning="vault-transit: log in by the pod's service account, as this role"
    )
    vault_auth_mount: str = variable(
        "SB_KMS_VAULT_KUBERNETES_MOUNT", default="kubernetes", meaning="vault-transit: mount of that auth method"
    )
    vault_jwt: str = variable(
        "SB_KMS_VAULT_KUBERNETES_JWT_PATH", default=_JWT, meaning="vault-transit: the service account's token"
    )
    aws_region: str | None = _text("SB_KMS_AWS_REGION", meaning="aws-kms: the region")
    aws_key: str | None = _text("SB_KMS_AWS_KEY_ID", meaning="aws-kms: id, alias or ARN of the key")
    aws_endpoint: str | None = _text("SB_KMS_AWS_ENDPOINT", meaning="aws-kms: an endpoint of your own")
    aws_ca: str | None = _text("AWS_CA_BUNDLE", meaning="aws-kms: a PEM file that replaces the system's authorities")

    def key_problems(self, *, dev: bool) -> Iterator[str]:
        """Yield what would keep tokens closed, one line each, without a value. `dev` is whether SB_ENV is dev."""
        if self.kms_backend == LOCAL:
            yield from self._local_problems(dev=dev)
        elif self.kms_backend == VAULT:
            yield from self._vault_problems(dev=dev)
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

    def _vault_problems(self, *, dev: bool) -> Iterator[str]:
        required = {"SB_KMS_VAULT_ADDR": self.vault_address, "SB_KMS_VAULT_KEY": self.vault_key}
        yield from _missing(required, VAULT)
        if (self.vault_token is None) == (self.vault_role is None):
            yield "SB_KMS_VAULT_TOKEN: set either it or SB_KMS_VAULT_KUBERNETES_ROLE, which vault-transit logs in with"
        if self.vault_token and not _fits_header(self.vault_token.get_secret_value()):
            yield "SB_KMS_VAULT_TOKEN: not a token; accepted: printable ASCII without spaces"
        yield from _url_problem("SB_KMS_VAULT_ADDR", self.vault_address, dev=dev)
        yield from _ca_problem("SB_KMS_VAULT_CACERT", self.vault_ca)
        if self.vault_namespace and not _fits_header(self.vault_namespace):
            yield "SB_KMS_VAULT_NAMESPACE: not a namespace; accepted: printable ASCII without spaces"
        if self.vault_unverified in TRUE:
            yield "VAULT_SKIP_VERIFY: not supported; name Vault's authority in SB_KMS_VAULT_CACERT"

    def _aws_problems(self, *, dev: bool) -> Iterator[str]:
        yield from _missing({"SB_KMS_AWS_REGION": self.aws_region, "SB_KMS_AWS_KEY_ID": self.aws_key}, AWS)
        if self.aws_region and not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-[0-9]+", self.aws_region):
            yield "SB_KMS_AWS_REGION: not a region; accepted: a name such as eu-central-1"
        yield from _url_problem("SB_KMS_AWS_ENDPOINT", self.aws_endpoint, dev=dev)
        yield from _ca_problem("AWS_CA_BUNDLE", self.aws_ca)

    @cached_property
    def keys(self) -> KeyManager:
        """The key manager of settings without problems. Made once, because it keeps logins; this contacts nothing."""
        from app.kms import aws, vault  # noqa: PLC0415 - an HTTP client of 17 MiB, only where tokens are opened

        if self.kms_backend == VAULT:
            namespace = self.vault_namespace or ""
            place = vault.Place(self.vault_address or "", self.vault_mount, self.vault_key or "", namespace)
            if self.vault_role is None:
                return vault.VaultKeys(place, token=self.vault_token)
            return vault.VaultKeys(
                place, login=vault.Kubernetes(self.vault_role, self.vault_auth_mount, self.vault_jwt)
            )
        if self.kms_backend == AWS:
            return aws.AwsKeys(aws.Place(self.aws_region or "", self.aws_key or "", self.aws_endpoint or ""))
        assert self.master_key is not None
        return LocalKeys(parse_master(self.master_key.get_secret_value()))

    @property
    def key_context(self) -> ssl.SSLContext:
        """The TLS context that verifies the key service. Raises OSError or ValueError for a bad file."""
        from app.core.http import tls_context  # noqa: PLC0415 - the same

        path = {VAULT: self.vault_ca, AWS: self.aws_ca}.get(self.kms_backend)
        return tls_context(pem=_pem(path) if path else None)


def _missing(required: dict[str, str | None], backend: str) -> Iterator[str]:
    for name, value in required.items():
        if not value:
            yield f"{name}: required by SB_KMS_BACKEND={backend}, but not set"


def _url_problem(name: str, url: str | None, *, dev: bool) -> Iterator[str]:
    if not url:
        return
    accepted = f"{name}: not a URL; accepted: https://host or https://host:port, and http:// with SB_ENV=dev"
    try:
        parts = urlsplit(url)
        fine = (
            bool(parts.hostname) and parts.port != 0 and not parts.username and not parts.query and not parts.fragment
        )
    except ValueError:
        fine, parts = False, urlsplit("")
    if not fine or not url.isascii() or not _fits_header(url) or parts.scheme not in ("https", "http"):
        yield accepted
    elif parts.scheme == "http" and not dev:
        yield f"{name}: plain http:// is for SB_ENV=dev only; accepted: https://"
    elif (address := literal(parts.hostname or "")) and never_dialled(address):
        yield f"{name}: an address that is never dialled, such as a metadata service's"


def _ca_problem(name: str, path: str | None) -> Iterator[str]:
    if not path:
        return
    from app.core.http import tls_context  # noqa: PLC0415 - the same

    try:
        tls_context(pem=_pem(path))
    except OSError:
        yield f"{name}: names a file that cannot be read; accepted: the path of a PEM file"
    except ValueError as error:
        yield f"{name}: {error}"


def _pem(path: str) -> str:
    """Return a PEM file; what stands around its certificates may be in any encoding."""
    return Path(path).read_text(encoding="ascii", errors="replace")


def _fits_header(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text
