"""The variables of the backend `vault-transit`: ours, the api's, and those that Vault's own Go client reads."""

from __future__ import annotations

import json
import os
import re
import ssl
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from app.core.bounded_input import contents, copied, entries
from app.core.config import Settings, name_of, variable
from app.core.values import TRUE, parse_bool, parse_duration, parse_int
from app.kms.checks import ca_problem, fits_header, pem, url_problem

if TYPE_CHECKING:
    from app.kms.vault import VaultKeys

VAULT = "vault-transit"
_JWT = "/var/run/secrets/kubernetes.io/serviceaccount/token"
_SOCKET = "unix://"
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

#: What Vault's Go client heeds and ours does not, and why not.
_NOT_HEEDED = {
    "VAULT_PROXY_ADDR": "not read; SB_EGRESS_PROXY_URL is",
    "VAULT_HTTP_PROXY": "not read; SB_EGRESS_PROXY_URL is",
    "VAULT_RATE_LIMIT": "not needed; a token is opened once a run, eight at a time, and Vault's HTTP 429 is heeded",
    "VAULT_WRAP_TTL": "not read; a wrapped answer would have no data key in it",
}


def text(*names: str, meaning: str, secret: bool = False) -> Any:
    """Declare a variable that is a text, or unset."""
    return variable(*names, default=None, meaning=meaning, secret=secret)


def _seconds(given: str) -> float | None:
    """Read a number of seconds or a Go duration, as Vault's client does; None for none, which is 0 or less."""
    try:
        length = timedelta(seconds=int(given)) if re.fullmatch("[0-9]{1,9}", given) else parse_duration(given)
    except ValueError:
        raise ValueError("not a time; accepted: seconds such as 30, or a Go duration such as 30s") from None
    return length / timedelta(seconds=1) if length > timedelta() else None


def _retries(given: str) -> int:
    number = parse_int(given)
    if number < 0:
        raise ValueError("not a number of retries; accepted: 0 or more")
    return number


def _headers(given: str) -> tuple[tuple[str, str], ...]:
    """Read a JSON object of texts."""
    try:
        parsed = json.loads(given)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict) or not all(_is_header(name, value) for name, value in parsed.items()):
        raise ValueError('not headers; accepted: a JSON object of texts such as {"X-Tenant": "eu"}, none of X-Vault-')
    return tuple(parsed.items())


def _is_header(name: str, value: object) -> bool:
    own = name.lower().startswith("x-vault-")
    return (
        bool(_NAME.fullmatch(name)) and not own and isinstance(value, str) and value.isascii() and value.isprintable()
    )


#: How the variables are read that Vault's Go client reads as something else than a text.
_PARSERS: dict[str, Callable[[str], Any]] = {
    "vault_headers": _headers,
    "vault_timeout": _seconds,
    "vault_retries": _retries,
    "vault_straight": parse_bool,
    "vault_unverified": parse_bool,
    "vault_srv": parse_bool,
}


class VaultSettings(Settings):
    """How Vault is reached, and what it is asked with."""

    vault_address: str | None = text(
        "SB_KMS_VAULT_ADDR",
        meaning="vault-transit: its https:// URL; http:// to a local agent; unix:// and an agent's socket",
    )
    vault_agent: str | None = text(
        "VAULT_AGENT_ADDR", meaning="vault-transit: an agent that is asked in place of SB_KMS_VAULT_ADDR"
    )
    vault_token: SecretStr | None = text(
        "SB_KMS_VAULT_TOKEN", secret=True, meaning="vault-transit: a token that may update <mount>/decrypt/<key>"
    )
    vault_key: str | None = text("SB_KMS_VAULT_KEY", meaning="vault-transit: name of the key")
    vault_mount: str = variable("SB_KMS_VAULT_MOUNT", default="transit", meaning="vault-transit: where it is mounted")
    vault_namespace: str | None = text(
        "SB_KMS_VAULT_NAMESPACE", "VAULT_NAMESPACE", meaning="vault-transit: its namespace"
    )
    vault_role: str | None = text(
        "SB_KMS_VAULT_KUBERNETES_ROLE", meaning="vault-transit: log in by the pod's service account, as this role"
    )
    vault_auth_mount: str = variable(
        "SB_KMS_VAULT_KUBERNETES_MOUNT", default="kubernetes", meaning="vault-transit: mount of that auth method"
    )
    vault_jwt: str = variable(
        "SB_KMS_VAULT_KUBERNETES_JWT_PATH", default=_JWT, meaning="vault-transit: the service account's token"
    )
    vault_ca: str | None = text(
        "SB_KMS_VAULT_CACERT",
        "VAULT_CACERT",
        meaning="vault-transit: a PEM file that replaces the system's authorities",
    )
    vault_ca_text: str | None = text("VAULT_CACERT_BYTES", meaning="vault-transit: the same as a text, without a file")
    vault_ca_directory: str | None = text(
        "VAULT_CAPATH", meaning="vault-transit: the same as a directory of PEM files, if neither of the two is set"
    )
    vault_certificate: str | None = text(
        "VAULT_CLIENT_CERT", meaning="vault-transit: a PEM file with our own certificate, for a Vault that wants one"
    )
    vault_certificate_key: str | None = text(
        "VAULT_CLIENT_KEY", meaning="vault-transit: a PEM file with its key, without a password"
    )
    vault_server_name: str | None = text(
        "VAULT_TLS_SERVER_NAME", meaning="vault-transit: the name in Vault's certificate, if it is not the URL's host"
    )
    vault_headers: SecretStr | None = text(
        "VAULT_HEADERS", secret=True, meaning="vault-transit: more headers, a JSON object of texts"
    )
    vault_timeout: str | None = text(
        "VAULT_CLIENT_TIMEOUT", meaning="vault-transit: time for a request in place of 10s; a token has 30s in all"
    )
    vault_retries: str = variable(
        "VAULT_MAX_RETRIES", default="2", meaning="vault-transit: how often a request that failed is sent again"
    )
    vault_straight: str = variable(
        "VAULT_DISABLE_REDIRECTS", default="false", meaning="vault-transit: follow no redirect to the active node"
    )
    vault_unverified: str = variable(
        "VAULT_SKIP_VERIFY", default="false", meaning="not supported: Vault is always verified"
    )
    vault_srv: str = variable(
        "VAULT_SRV_LOOKUP", default="false", meaning="not supported: give the port in SB_KMS_VAULT_ADDR"
    )

    def vault_problems(self, *, dev: bool) -> Iterator[str]:
        """Yield what would keep Vault from being asked. `dev` is whether SB_ENV is dev."""
        for name, value in {"SB_KMS_VAULT_ADDR": self.vault_address, "SB_KMS_VAULT_KEY": self.vault_key}.items():
            if not value:
                yield f"{name}: required by SB_KMS_BACKEND={VAULT}, but not set"
        if (self.vault_token is None) == (self.vault_role is None):
            yield "SB_KMS_VAULT_TOKEN: set either it or SB_KMS_VAULT_KUBERNETES_ROLE, which vault-transit logs in with"
        if self.vault_token and not fits_header(self.vault_token.get_secret_value()):
            yield "SB_KMS_VAULT_TOKEN: not a token; accepted: printable ASCII without spaces"
        if self.vault_namespace and not fits_header(self.vault_namespace):
            yield "SB_KMS_VAULT_NAMESPACE: not a namespace; accepted: printable ASCII without spaces"
        yield from self._unreadable()
        problems = list(_address_problem(self._address_name, self._asked, dev=dev))
        yield from problems or self._unsupported()
        yield from self._tls_problems()

    @property
    def vault_warnings(self) -> tuple[str, ...]:
        """What the Go worker's client heeds, and ours does not."""
        return tuple(f"{name}: {why}" for name, why in _NOT_HEEDED.items() if os.environ.get(name))

    @cached_property
    def vault_keys(self) -> VaultKeys:
        """The key manager of settings without problems."""
        from app.kms import vault  # noqa: PLC0415 - an HTTP client of 17 MiB, only where tokens are opened

        place = vault.Place(self._asked, self.vault_mount, self.vault_key or "", self.vault_namespace or "")
        options = vault.Options(
            retries=self._parsed("vault_retries"),
            follow=not self._parsed("vault_straight"),
            seconds=self._parsed("vault_timeout"),
            server_name=self.vault_server_name or "",
            headers=self._parsed("vault_headers") or (),
        )
        if self.vault_role is None:
            return vault.VaultKeys(place, token=lambda: self.current("vault_token"), options=options)
        login = vault.Kubernetes(self.vault_role, self.vault_auth_mount, self.vault_jwt)
        return vault.VaultKeys(place, login=login, options=options)

    def vault_context(self) -> ssl.SSLContext:
        """Return the TLS context that verifies Vault. Raises OSError or ValueError for what is not PEM."""
        from app.core.http import tls_context  # noqa: PLC0415 - the same

        authorities = pem(self.vault_ca) if self.vault_ca else self.vault_ca_text
        if authorities is None and self.vault_ca_directory:
            authorities = _directory(Path(self.vault_ca_directory))
        context = tls_context(pem=authorities)
        if self.vault_certificate and self.vault_certificate_key:
            _load_certificate(context, self.vault_certificate, self.vault_certificate_key)
        return context

    @property
    def _asked(self) -> str:
        """The address that is asked: as in Vault's client, an agent comes before everything else."""
        return self.vault_agent or self.vault_address or ""

    @property
    def _address_name(self) -> str:
        return "VAULT_AGENT_ADDR" if self.vault_agent else "SB_KMS_VAULT_ADDR"

    def _parsed(self, field: str) -> Any:
        """Return what a variable means; None for one that is unset. Raises ValueError without a value."""
        value = getattr(self, field)
        given = value.get_secret_value() if isinstance(value, SecretStr) else value
        return None if given is None else _PARSERS[field](given)

    def _unreadable(self) -> Iterator[str]:
        for field in _PARSERS:
            try:
                self._parsed(field)
            except ValueError as error:
                yield f"{name_of(VaultSettings, field)}: {error}"

    def _unsupported(self) -> Iterator[str]:
        address = urlsplit(self._asked)
        if self.vault_unverified in TRUE and address.scheme == "https":
            yield "VAULT_SKIP_VERIFY: not supported; name Vault's authority in SB_KMS_VAULT_CACERT"
        if self.vault_srv in TRUE and address.hostname and address.port is None:
            yield f"VAULT_SRV_LOOKUP: not supported; give the port in {self._address_name}"

    def _tls_problems(self) -> Iterator[str]:
        from app.core.http import is_server_name  # noqa: PLC0415 - the same

        if self.vault_server_name and not is_server_name(self.vault_server_name):
            yield "VAULT_TLS_SERVER_NAME: not a server's name; accepted: the name in Vault's certificate"
        if self.vault_ca:
            yield from ca_problem(name_of(VaultSettings, "vault_ca"), self.vault_ca)
        elif self.vault_ca_text or self.vault_ca_directory:
            name = "VAULT_CACERT_BYTES" if self.vault_ca_text else "VAULT_CAPATH"
            try:
                self.model_copy(update={"vault_certificate": None}).vault_context()
            except OSError:
                yield f"{name}: cannot be read; accepted: a directory of PEM files"
            except ValueError as error:
                yield f"{name}: {error}"
        if bool(self.vault_certificate) != bool(self.vault_certificate_key):
            yield "VAULT_CLIENT_CERT: set together with VAULT_CLIENT_KEY only"
        elif self.vault_certificate and self.vault_certificate_key:
            try:
                _load_certificate(
                    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), self.vault_certificate, self.vault_certificate_key
                )
            except (OSError, ValueError):
                yield (
                    "VAULT_CLIENT_CERT: does not go with VAULT_CLIENT_KEY; accepted: readable PEM files of a "
                    "certificate and of its key, which has no password"
                )


def _address_problem(name: str, url: str | None, *, dev: bool) -> Iterator[str]:
    if not url or not url.startswith(_SOCKET):
        yield from url_problem(name, url, dev=dev)
    elif not Path(url.removeprefix(_SOCKET)).is_absolute():
        yield f"{name}: not a socket; accepted: unix:// and an absolute path"


def _directory(path: Path) -> str:
    """Return all PEM files in and below a directory. Raises ValueError when one holds no certificate."""
    from app.core.http import tls_context  # noqa: PLC0415 - the same

    if not path.is_dir():
        raise NotADirectoryError
    files = [file for file in entries(path, "**/*") if not file.is_dir()]
    texts = [found.decode("ascii", errors="replace") for found in contents(files)]
    for one in texts or [""]:
        tls_context(pem=one)
    return "\n".join(texts)


def _load_certificate(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Raises OSError or ValueError; a key with a password is one of these, and not a question to the terminal."""
    with copied(certificate) as chain, copied(key) as secret:
        context.load_cert_chain(chain, secret, password=lambda: "")
