"""The part of `sb-worker check` that looks receivers up, and judges where they are. None of them is contacted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_network

from app.cli.checks.finding import Finding
from app.core import egress
from app.core.egress import Address, Proxy, literal
from app.core.errors import AddressBlocked
from app.core.lookup import NameUnknown, look_up
from app.notify.egress import CLEARTEXT, NEVER, OPEN, EgressPolicy
from app.notify.routing import Target
from app.notify.settings import NotificationSettings
from app.notify.sink import Destination

_NETWORKS = "SB_NOTIFICATION_ALLOWED_NETWORKS"


def receiver_findings(
    common: NotificationSettings, proxy: Proxy | None, targets: Sequence[Target], heartbeat: Mapping[str, Destination]
) -> Iterator[Finding]:
    """Yield whether receivers, the `heartbeat` and the proxy may be dialled; what is refused, and what allows it."""
    settings = {id(target.settings): (target.settings, target.sink.name) for target in targets}.values()
    places = [(f"sink {sink}", name, place) for one, sink in settings for name, place in one.destinations.items()]
    places += [("heartbeat", name, place) for name, place in heartbeat.items()]
    yield from asyncio.run(_all(common, proxy, places))


async def _all(
    common: NotificationSettings, proxy: Proxy | None, places: Sequence[tuple[str, str, Destination]]
) -> list[Finding]:
    """Look all of them up at once: each may take its time."""
    proxies = [_proxy(proxy, common.timeout.total_seconds())] if proxy else []
    return await asyncio.gather(*proxies, *(_receiver(*place, common, proxy) for place in places))


async def _proxy(proxy: Proxy, seconds: float) -> Finding:
    subject, name = "proxy", "SB_EGRESS_PROXY_URL"
    try:
        async with asyncio.timeout(seconds):
            await egress.resolve(proxy.host, proxy.port)
    except AddressBlocked:
        return Finding(subject, False, f"{name}: its host is at an address that is never dialled")
    except (NameUnknown, TimeoutError):
        return Finding(subject, False, f"{name}: its host's name is not known here")
    return Finding(subject, True, f"{name}: its host may be dialled")


async def _receiver(
    subject: str, name: str, place: Destination, common: NotificationSettings, proxy: Proxy | None
) -> Finding:
    policy = OPEN if place.private else EgressPolicy(common.allowed_networks)
    by_proxy = proxy is not None and not (place.mail or place.cleartext or proxy.spares(place.host))
    try:
        async with asyncio.timeout(common.timeout.total_seconds()):
            found = [place.host] if literal(place.host) else await look_up(place.host, place.port)
    except (NameUnknown, TimeoutError):
        if by_proxy and not egress.is_name(place.host):
            return Finding(subject, False, f"{name}: its host is no name; what a proxy would take it for is not known")
        if by_proxy:
            return Finding(subject, True, f"{name}: its host's name is left to the proxy; it is not known here")
        text = f"{name}: its host's name is not known here; what is sent waits until it is"
        return Finding(subject, False, text, warning=True)
    addresses = [address for text in found if (address := literal(text)) is not None]
    refusals = {address: policy.refusal(address, cleartext=place.cleartext) for address in addresses}
    refused = {address: why for address, why in refusals.items() if why}
    if refused and (by_proxy or len(refused) == len(refusals)):
        return Finding(subject, False, f"{name}: {_refused(place, refused, by_proxy=by_proxy)}")
    if place.private and place.cleartext and any(address.is_global for address in refusals):
        text = f"{name}: plain http:// to a public address; what is sent there can be read on its way"
        return Finding(subject, False, text, warning=True)
    return Finding(subject, True, f"{name}: its host may be dialled")


def _refused(place: Destination, refused: dict[Address, str], *, by_proxy: bool) -> str:
    """Return what would be refused, and the setting that allows it, if one does."""
    where = f"its host is at {', '.join(map(str, refused))}, and everything sent there would be refused: "
    opened = [ip_network(address) for address, why in refused.items() if why != NEVER]
    if not opened or (by_proxy and len(opened) < len(refused)):  # nobody knows which of them a proxy takes
        return where + "an address that is never dialled, whatever is allowed"
    allowed = f"only where {_NETWORKS} has {','.join(map(str, opened))}, or networks around"
    if CLEARTEXT in refused.values():
        return where + f"without TLS {allowed}; better use {'TLS' if place.mail else 'https://'}"
    return where + f"closed (loopback, private); dialled {allowed}"
