"""The egress policy: which addresses may be dialled.

A receiver's name can be made to point anywhere, so what is checked is the address that is dialled, each time. Never:
multicast, reserved, unspecified, link-local and the clouds' metadata services. Only in networks that the operator
allows: loopback and private ranges, and those that carry or hide an IPv4 address (carrier NAT, NAT64, 6to4, ...).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from app.core.errors import Fault, SinkRejected, SinkUnavailable
from app.notify.settings import IPNetwork

Address = IPv4Address | IPv6Address

# Metadata services that are not link-local: AWS over IPv6, Alibaba, Azure; then "this network".
_NEVER = tuple(map(ip_network, ("fd00:ec2::254/128", "100.100.100.200/32", "168.63.129.16/32", "0.0.0.0/8")))
_CLOSED = tuple(
    map(
        ip_network,
        (
            "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "192.0.0.0/24",
            "192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "192.88.99.0/24",
            "::1/128", "fc00::/7", "fec0::/10", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96",
            "2001:db8::/32", "100::/64", "2001:10::/28", "5f00::/16",
        ),
    )
)  # fmt: skip


class EgressPolicy:
    """Public addresses, and the networks that the operator allows although they are closed otherwise."""

    def __init__(self, allowed: Sequence[IPNetwork]) -> None:
        self._allowed = tuple(allowed)

    def allows(self, address: str, *, cleartext: bool = False) -> bool:
        """Return whether an address may be dialled; without TLS (`cleartext`) only in allowed networks."""
        bare = _unwrap(ip_address(address.partition("%")[0]))
        if _forbidden(bare):
            return False
        allowed = any(bare in network for network in self._allowed)
        return allowed or (not cleartext and not any(bare in network for network in _CLOSED))

    async def resolve(self, host: str, port: int, *, cleartext: bool = False) -> list[str]:
        """Return the addresses of a host that may be dialled, in the resolver's order.

        Raises SinkUnavailable when the name is not known, SinkRejected when all its addresses are closed.
        """
        addresses = [host] if _is_address(host) else await _look_up(host, port)
        allowed = [address for address in addresses if self.allows(address, cleartext=cleartext)]
        if not allowed:
            raise SinkRejected(Fault.BLOCKED_ADDRESS)
        return allowed

    def denies_literal(self, host: str, *, cleartext: bool) -> bool:
        """Return whether a URL's host is an address that is never dialled; a name is checked when it is resolved."""
        if cleartext and not self._allowed:
            return True
        return _is_address(host) and not self.allows(host, cleartext=cleartext)


async def _look_up(host: str, port: int) -> list[str]:
    try:
        infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise SinkUnavailable(Fault.DNS) from None
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _unwrap(address: Address) -> Address:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _forbidden(address: Address) -> bool:
    """Return whether no allowance opens the address."""
    if any(address in network for network in _NEVER):
        return True
    if address.is_multicast or address.is_unspecified or address.is_link_local:
        return True
    # Python counts ::/8 as reserved; the loopback and embedded IPv4 addresses in it are closed, not reserved.
    closed = isinstance(address, IPv6Address) and any(address in network for network in _CLOSED)
    return address.is_reserved and not closed
