"""The egress policy: which addresses receivers may be dialled at.

A receiver's name can be made to point anywhere, so what is checked is the address that is dialled, each time. Never:
what `app.core.egress` lists. Only in networks that the operator allows: loopback and private ranges, and those that
carry or hide an IPv4 address (carrier NAT, NAT64, 6to4, ...).
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network

from app.core.egress import literal, never_dialled
from app.core.errors import Fault, SinkRejected, SinkUnavailable
from app.core.lookup import NameUnknown, look_up
from app.notify.settings import IPNetwork

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
        bare = literal(address)
        if bare is None or never_dialled(bare):
            return False
        allowed = any(bare in network for network in self._allowed)
        return allowed or (not cleartext and not any(bare in network for network in _CLOSED))

    async def resolve(self, host: str, port: int, *, cleartext: bool = False) -> list[str]:
        """Return the addresses of a host that may be dialled, in the resolver's order.

        Raises SinkUnavailable when the name is not known, SinkRejected when all its addresses are closed.
        """
        try:
            addresses = [host] if literal(host) else await look_up(host, port)
        except NameUnknown:
            raise SinkUnavailable(Fault.DNS) from None
        allowed = [address for address in addresses if self.allows(address, cleartext=cleartext)]
        if not allowed:
            raise SinkRejected(Fault.BLOCKED_ADDRESS)
        return allowed

    def denies_literal(self, host: str, *, cleartext: bool) -> bool:
        """Return whether a URL's host is an address that is never dialled; a name is checked when it is resolved."""
        if cleartext and not self._allowed:
            return True
        return literal(host) is not None and not self.allows(host, cleartext=cleartext)
