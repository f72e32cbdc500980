"""Addresses that nothing here ever dials: link-local and metadata services, multicast, reserved, unspecified.

A name can be made to point anywhere, so what is judged is the address that is dialled, at each connection, and the IPv4
address that an IPv6 one carries as well. Which other addresses are open is for each room to say.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from app.core.errors import AddressBlocked
from app.core.lookup import look_up

Address = IPv4Address | IPv6Address

#: Metadata services that are not link-local: AWS over IPv6 (instance, pods), Google over IPv6, Alibaba, Azure, Oracle.
_METADATA = frozenset(
    map(
        ip_address,
        ("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
    )
)
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


def never_dialled(address: Address) -> bool:
    """Return whether no setting opens the address."""
    if any(_is_metadata(one) for one in (address, *_carried(address))):
        return True
    if address.is_multicast or address.is_unspecified or address in _THIS_NETWORK:
        return True
    return address.is_reserved and not any(address in network for network in _IN_USE)


async def resolve(host: str, port: int, *, besides: Collection[Address] = ()) -> list[str]:
    """Return the addresses of a host that may be dialled, private ones too, in the resolver's order.

    `besides` are addresses that are open although they are on the list. Raises NameUnknown, or AddressBlocked when
    it has none that may be dialled.
    """
    addresses = [host] if literal(host) else await look_up(host, port)
    found = [(text, literal(text)) for text in addresses]
    allowed = [text for text, address in found if address and (address in besides or not never_dialled(address))]
    if not allowed:
        raise AddressBlocked
    return allowed


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
