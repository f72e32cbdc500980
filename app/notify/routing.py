"""Routing: which receivers there are, which of them get an event, and why the others do not.

Each receiver gets a delivery of its own, with its own retries, breaker and end: one bad sink does not block the others.
A sink with several receivers (mail) has one target for each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any, NamedTuple

from pydantic import SecretStr

from app.core.config import Settings, name_of
from app.core.events import Event
from app.notify.egress import NEVER, OPEN, EgressPolicy
from app.notify.settings import NotificationSettings
from app.notify.sink import Destination, Sink, SinkSettings

AnySink = Sink[Any]


@dataclass(frozen=True)
class Target:
    """One receiver: `name` is public (`slack`, `email:3f2a9c1b`), `receiver` may be a secret of its sink."""

    name: str
    sink: AnySink
    settings: SinkSettings
    receiver: str

    @cached_property
    def fingerprint(self) -> str:
        """A hash that changes with the configuration: 32 bits, and slow to compute, so that it reveals no secret."""
        values = {
            name: value.get_secret_value() if isinstance(value, SecretStr) else repr(value)
            for name, value in self.settings
        }
        text = json.dumps([self.receiver, values], sort_keys=True, default=repr).encode()
        return hashlib.scrypt(text, salt=self.name.encode(), n=2**14, r=8, p=1, dklen=4).hex()


class Route(NamedTuple):
    """One receiver of an event, and the reason why it does not get it; empty when it does."""

    target: Target
    filtered_by: str


class Router:
    """Routes events to the receivers that are configured."""

    def __init__(self, targets: Iterable[Target]) -> None:
        self.targets = {target.name: target for target in targets}

    def route(self, event: Event) -> list[Route]:
        """Return a route for every receiver, whether it gets the event or not."""
        return [Route(target, target.settings.filter_reason(event)) for target in self.targets.values()]


def targets(sinks: Sequence[AnySink], settings: Sequence[SinkSettings]) -> list[Target]:
    """Return the receivers of every sink that is configured; `settings` are those of each sink, in its place."""
    return [
        Target(f"{sink.name}:{key}" if key else sink.name, sink, sink_settings, receiver)
        for sink, sink_settings in zip(sinks, settings, strict=True)
        if sink_settings.enabled
        for key, receiver in sink_settings.receivers.items()
    ]


def problems(common: NotificationSettings, targets: Iterable[Target], sweepers: Iterable[str]) -> Iterator[str]:
    """Yield what is wrong across settings: addresses that are never dialled, sweepers that do not exist."""
    known = set(sweepers)
    for settings in {id(target.settings): target.settings for target in targets}.values():
        yield from closed_places(common, settings.destinations)
        yield from unknown_sweepers(type(settings), settings.sweepers, known)


def closed_places(common: NotificationSettings, places: Mapping[str, Destination]) -> Iterator[str]:
    """Yield which of these places, by their variables, are never dialled, as far as that shows without a look-up."""
    egress = EgressPolicy(common.allowed_networks)
    for name, place in places.items():
        refusal = (OPEN if place.private else egress).foreseen(place.host, cleartext=place.cleartext)
        if refusal:
            yield f"{name}: {_NEVER if refusal == NEVER else _closed(place)}"


def unknown_sweepers(group: type[Settings], names: Iterable[str], known: Collection[str]) -> Iterator[str]:
    """Yield which names in the variable `sweepers` of a group of settings are of no sweeper, each by its place.

    What is no sweeper's name may be a secret that ended up under the wrong name.
    """
    for place, name in enumerate(names, 1):
        if name.removeprefix("-") not in known:
            variable, accepted = name_of(group, "sweepers"), ", ".join(sorted(known))
            meant = get_close_matches(name.removeprefix("-"), list(known), n=1)
            hint = f" (did you mean {meant[0]}?)" if meant else ""
            yield f"{variable}: name {place} of the list is no sweeper's{hint}; accepted: {accepted}"


_NEVER = (
    "an address that is never dialled, whatever is allowed: a metadata service's, link-local, multicast or reserved"
)


def _closed(place: Destination) -> str:
    clear, accepted = (
        ("mail without TLS", "a public host, by TLS")
        if place.mail
        else ("plain http://", "an https:// URL of a public host")
    )
    return (
        f"{clear} and closed addresses (loopback, private) are for networks in SB_NOTIFICATION_ALLOWED_NETWORKS only;"
        f" accepted: {accepted}, or name the network there"
    )
