"""The egress policy: which addresses receivers may be dialled at.

A receiver's name can be made to point anywhere, so what is checked is the address that is dialled, each time. Never:
what `app.core.egress` lists. Only in networks that the operator allows: loopback and private ranges, and those that
carry or hide an IPv4 address (carrier NAT, NAT64, 6to4, ...). Nothing in the clear but in those networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network

from app.core.egress import Address, IPNetwork, literal, never_dialled, resolve

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


#: What a receiver's address may not be: never dialled at all, closed, open but by TLS only.
NEVER, CLOSED, CLEARTEXT = "never dialled", "closed", "for TLS only"


class EgressPolicy:
    """Public addresses, and the networks that the operator allows although they are closed otherwise."""

    def __init__(self, allowed: Sequence[IPNetwork]) -> None:
        self._allowed = tuple(allowed)

    def refusal(self, address: Address, *, cleartext: bool = False) -> str:
        """Return why an address may not be dialled: NEVER, CLOSED or CLEARTEXT; empty when it may.

        Without TLS (`cleartext`) only those in allowed networks may be.
        """
        if never_dialled(address):
            return NEVER
        if any(address in network for network in self._allowed):
            return ""
        if any(address in network for network in _CLOSED):
            return CLOSED
        return CLEARTEXT if cleartext else ""

    def allows(self, address: str, *, cleartext: bool = False) -> bool:
        """Return whether an address may be dialled."""
        bare = literal(address)
        return bare is not None and not self.refusal(bare, cleartext=cleartext)

    def foreseen(self, host: str, *, cleartext: bool = False) -> str:
        """Return why a host can never be dialled, as far as that shows before its name is looked up; else empty."""
        if (address := literal(host)) is not None:
            return self.refusal(address, cleartext=cleartext)
        return CLEARTEXT if cleartext and not self._allowed else ""

    async def resolve(self, host: str, port: int, *, cleartext: bool = False, every: bool = False) -> list[str]:
        """Return the addresses of a host that may be dialled, as `app.core.egress.resolve` does."""
        return await resolve(
            host, port, every=every, allows=lambda address: not self.refusal(address, cleartext=cleartext)
        )


#: Open to all but what is never dialled, in the clear too: for receivers that are configured the way of the Go worker.
OPEN = EgressPolicy((ip_network("0.0.0.0/0"), ip_network("::/0")))
