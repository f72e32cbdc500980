"""Fan-out: which receivers there are, which of them an event is for, and why not the others.

Each receiver gets a delivery of its own, with its own retries, breaker and end: one bad sink cannot block its siblings.
A sink with several receivers (mail) has one target for each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pydantic import SecretStr

from app.core.config import name_of
from app.core.events import Event
from app.notify.egress import EgressPolicy
from app.notify.settings import NotificationSettings
from app.notify.sink import Sink, SinkSettings

AnySink = Sink[Any]


@dataclass(frozen=True)
class Target:
    """One receiver: `name` is public (`slack`, `email:3f2a9c1b`), `receiver` what the sink knows it by."""

    name: str
    sink: AnySink
    settings: SinkSettings
    receiver: str

    @cached_property
    def fingerprint(self) -> str:
        """Tell configurations apart, without telling what they are: 32 bits of a hash that is slow to compute."""
        cleartext = {
            name: value.get_secret_value() if isinstance(value, SecretStr) else repr(value)
            for name, value in self.settings
        }
        text = json.dumps([self.receiver, cleartext], sort_keys=True, default=repr).encode()
        return hashlib.scrypt(text, salt=self.name.encode(), n=2**14, r=8, p=1, dklen=4).hex()


class Route(NamedTuple):
    """One receiver's part of an event: a refusal has a reason and is suppressed."""

    target: Target
    filtered_by: str


class Router:
    """Every receiver that is configured."""

    def __init__(self, targets: Iterable[Target]) -> None:
        self.targets = {target.name: target for target in targets}

    def route(self, event: Event) -> list[Route]:
        """Say for every receiver whether the event is for it."""
        return [Route(target, target.settings.filter_reason(event)) for target in self.targets.values()]


def targets(sinks: Sequence[AnySink], settings: Sequence[SinkSettings]) -> list[Target]:
    """Give the receivers of every sink that is configured."""
    return [
        Target(f"{sink.name}:{key}" if key else sink.name, sink, own, receiver)
        for sink, own in zip(sinks, settings, strict=True)
        if own.enabled
        for key, receiver in own.receivers.items()
    ]


def problems(common: NotificationSettings, found: Iterable[Target], sweepers: Iterable[str]) -> Iterable[str]:
    """Say what is wrong across settings: addresses that will never be dialled, sweepers that do not exist."""
    egress = EgressPolicy(common.allowed_networks)
    known = set(sweepers)
    for own in {id(target.settings): target.settings for target in found}.values():
        for name, url in own.urls.items():
            parts = urlsplit(url.get_secret_value())
            if egress.denies_literal(parts.hostname or "", cleartext=parts.scheme == "http"):
                yield f"{name}: {_CLOSED}"
        for name in own.sweepers:
            if name.removeprefix("-") not in known:
                variable, accepted = name_of(type(own), "sweepers"), ", ".join(sorted(known))
                yield f"{variable}: no sweeper is called {name.removeprefix('-')}; accepted: {accepted}"


_CLOSED = (
    "plain http:// and closed addresses (loopback, private) are for networks in SB_NOTIFICATION_ALLOWED_NETWORKS only;"
    " accepted: an https:// URL of a public host, or name the network there"
)
