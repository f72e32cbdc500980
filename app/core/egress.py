"""Addresses that nothing here ever dials: link-local and metadata services, multicast, reserved, unspecified.

A name can be made to point anywhere, so what is judged is the address that is dialled, at each connection, and the IPv4
address that an IPv6 one carries as well. Which other addresses are open is for each room to say. Where a proxy does the
dialling, it is the proxy's address, and what the name stands for here.
"""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

from pydantic import BeforeValidator, SecretStr

from app.core.bounded_input import MOST_ENTRIES, content, entries
from app.core.config import Settings, variable
from app.core.errors import AddressBlocked
from app.core.lookup import look_up

Address = IPv4Address | IPv6Address
#: Returns whether an address may be dialled.
Allows = Callable[[Address], bool]

#: Metadata services that are not link-local: AWS over IPv6 (instance, pods), Google over IPv6, Alibaba, Azure, Oracle.
_METADATA = frozenset(
    map(
        ip_address,
        ("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
    )
)
# Its last label is no number: then all of it is an address to some, such as browsers.
_A_NAME = re.compile(r"(?:[a-z0-9_-]+\.)*(?!(?:[0-9]+|0x[0-9a-f]*)\.?\Z)[a-z0-9_-]+\.?", re.ASCII | re.IGNORECASE)
_THIS_NETWORK = ip_network("0.0.0.0/8")
# Python counts these as reserved; they are the loopback, and addresses that somebody may have in use.
_IN_USE = tuple(
    map(
        IPv6Network,
        ("::1/128", "::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "5f00::/16", "fec0::/10", "fc00::/7"),
    )
)
_CARRIES_AT_ITS_END = tuple(map(IPv6Network, ("::/96", "64:ff9b::/96", "64:ff9b:1::/48")))


def literal(host: str) -> Address | None:
    """Return the address that a host is, without its zone; IPv4 in IPv6 (`::ffff:`) as IPv4. None for a name."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def is_name(host: str) -> bool:
    """Return whether a host is a name to every resolver.

    Others may read an address from what is none here: `10.0.0.1.`, `%31%30.0.0.1`, `0x7f.1`.
    """
    return _A_NAME.fullmatch(host) is not None


def never_dialled(address: Address) -> bool:
    """Return whether no setting opens the address."""
    if any(_is_metadata(one) for one in (address, *_carried(address))):
        return True
    if address.is_multicast or address.is_unspecified or address in _THIS_NETWORK:
        return True
    return address.is_reserved and not any(address in network for network in _IN_USE)


async def resolve(
    host: str, port: int, *, besides: Collection[Address] = (), every: bool = False, allows: Allows | None = None
) -> list[str]:
    """Return the addresses of a host that may be dialled, in the resolver's order.

    Those are all, private ones too, but what is never dialled; or what a room `allows`. `besides` are addresses that
    are open although they are never dialled. `every` is for a host that somebody else will look up once more: then none
    of its addresses may be a closed one. Raises NameUnknown, or AddressBlocked when it has none that may be dialled.
    """
    found = [host] if literal(host) else await look_up(host, port)
    allowed = [text for text in found if _is_open(literal(text), besides, allows)]
    if not allowed or (every and len(allowed) < len(found)):
        raise AddressBlocked
    return allowed


def _is_open(address: Address | None, besides: Collection[Address], allows: Allows | None) -> bool:
    if address is None:
        return False
    return address in besides or (not never_dialled(address) and (allows is None or allows(address)))


def _is_metadata(address: Address) -> bool:
    return address.is_link_local or address in _METADATA


def _carried(address: Address) -> list[IPv4Address]:
    """Return the IPv4 addresses in an IPv6 one: mapped, compatible, NAT64, 6to4, Teredo, ISATAP."""
    if isinstance(address, IPv4Address):
        return []
    at_its_end = any(address in network for network in _CARRIES_AT_ITS_END) or address.packed[8:12] in _ISATAP
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    found += [IPv4Address(address.packed[-4:])] if at_its_end else []
    return [one for one in found if one is not None]


_ISATAP = (b"\x00\x00\x5e\xfe", b"\x02\x00\x5e\xfe")


IPNetwork = IPv4Network | IPv6Network

_PORTS = {"http": 80, "https": 443}
_NOT_A_PROXY = (
    "not a proxy; accepted: http://host:port or https://host:port, with user:password@ where it wants a login"
)
_NOT_HOSTS = "not a list of hosts; accepted: names, .suffixes, addresses and CIDR, comma-separated"


class Proxy(NamedTuple):
    """A proxy that leads to any host by CONNECT, and the hosts that are dialled without it."""

    scheme: str
    host: str
    port: int
    #: The value of its header `Proxy-Authorization`, a secret; empty without a login.
    login: str
    spared: tuple[str | IPNetwork, ...]

    def __repr__(self) -> str:
        return f"Proxy({self.host}:{self.port})"

    def spares(self, host: str) -> bool:
        """Return whether a host is dialled without the proxy; one without an address in it is compared as a name."""
        if (address := literal(host)) is not None:
            return any(address in one for one in self.spared if not isinstance(one, str))
        name = host.lower().rstrip(".")
        return any(_below(name, one) for one in self.spared if isinstance(one, str))


def _below(name: str, one: str) -> bool:
    return name.endswith(one) if one.startswith(".") else f".{name}".endswith(f".{one}")


def _proxy_url(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        url = urlsplit(value)
        fine = value.isascii() and value.isprintable() and " " not in value and bool(url.hostname) and url.port != 0
        fine = fine and url.scheme in _PORTS and url.path in ("", "/") and not (url.query or url.fragment)
    except ValueError:
        fine, url = False, urlsplit("")
    if not fine:
        raise ValueError(_NOT_A_PROXY)
    if (address := literal(url.hostname or "")) and never_dialled(address):
        raise ValueError("an address that is never dialled, such as a metadata service's")
    return SecretStr(value)


def _hosts(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(_host(part.strip().lower()) for part in value.split(",") if part.strip())


def _host(text: str) -> str | IPNetwork:
    with suppress(ValueError):
        return ip_network(text.strip("[]"), strict=False)  # an address is a network of one
    if not re.fullmatch(r"\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*", text):
        raise ValueError(_NOT_HOSTS)
    return text


#: Variables of OpenSSL's and of requests', which name authorities; one that names nothing is no fault to them.
_AUTHORITIES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def file_problems() -> Iterator[str]:
    """Yield what is wrong with files of TLS that libraries open by themselves, and would wait for."""
    for name in _AUTHORITIES:
        if (path := os.environ.get(name)) and os.path.exists(path) and not os.path.isdir(path):  # noqa: PTH110, PTH112 - Path raises
            try:
                content(path)
            except (OSError, ValueError):
                yield f"{name}: names a file that cannot be read; accepted: the path of a PEM file of 4 MiB at most"
    for directory in filter(os.path.exists, os.environ.get("SSL_CERT_DIR", "").split(":")):
        try:
            if not Path(directory).is_dir():
                raise NotADirectoryError
            entries(directory)
        except (OSError, ValueError):
            yield f"SSL_CERT_DIR: names what is no directory of PEM files; accepted: {MOST_ENTRIES} files at most"
    path = os.environ.get("SSLKEYLOGFILE")
    if path and os.path.exists(path) and not (os.path.isfile(path) and os.access(path, os.W_OK)):  # noqa: PTH110, PTH113 - the same
        yield "SSLKEYLOGFILE: names what is no file that can be written to; leave it out"


class EgressSettings(Settings):
    """The way out that sinks, ArgoCD and key services share."""

    proxy_url: Annotated[SecretStr | None, BeforeValidator(_proxy_url)] = variable(
        "SB_EGRESS_PROXY_URL",
        default=None,
        secret=True,
        meaning="proxy (CONNECT) for https:// to sinks, ArgoCD and key services; http:// and mail go without it",
    )
    spared: Annotated[tuple[str | IPNetwork, ...], BeforeValidator(_hosts)] = variable(
        "SB_EGRESS_NO_PROXY",
        default="localhost,127.0.0.0/8,::1,.svc,.cluster.local",
        meaning="hosts dialled without the proxy: names with all below them, .suffixes, and of URLs with an address"
        " in them addresses and CIDR",
    )

    @property
    def proxy(self) -> Proxy | None:
        """The proxy, if there is one."""
        if self.proxy_url is None:
            return None
        url = urlsplit(self.proxy_url.get_secret_value())
        pair = unquote_to_bytes(url.username or "") + b":" + unquote_to_bytes(url.password or "")
        login = f"Basic {b64encode(pair).decode()}" if url.username or url.password else ""
        return Proxy(url.scheme, url.hostname or "", url.port or _PORTS[url.scheme], login, self.spared)
